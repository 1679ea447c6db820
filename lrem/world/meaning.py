"""What a query means: an exact predicate on item fields, and the keywords that express it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

Fields = Mapping[str, str]  # type, brand and the dimensions an item has, e.g. {"type": "coat", "colour": "red"}
Condition = tuple[str, str]  # (field, value)


@dataclass(frozen=True)
class TargetProduct:
    """A kind of product that answers a query: a type, and the values it must have."""

    type: str
    where: tuple[Condition, ...] = ()

    def accepts(self, fields: Fields) -> bool:
        """Return whether the item is of the type and has every value."""
        return fields["type"] == self.type and all(fields.get(name) == value for name, value in self.where)

    @property
    def keyword(self) -> str:
        """The words of its titles.

        >>> TargetProduct("sofa", (("upholstery", "velvet"),)).keyword
        'velvet sofa'
        """
        return " ".join([*(value for _, value in self.where), self.type])


@dataclass(frozen=True)
class Meaning:
    """A query's meaning: any of the target products, under the conditions that the query states itself.

    `via` is the first step of a two-step fact ("cold climate" for oslo); it is not a condition, but the reasoning
    starts with it.
    """

    any_of: tuple[TargetProduct, ...]
    all_of: tuple[Condition, ...] = ()
    via: str = ""

    def accepts(self, fields: Fields) -> bool:
        """Return whether an item with these fields is relevant.

        >>> warm = Meaning((TargetProduct("scarf"), TargetProduct("gloves")), (("colour", "red"),))
        >>> warm.accepts({"type": "gloves", "colour": "red"}), warm.accepts({"type": "hat", "colour": "red"})
        (True, False)
        """
        stated = all(fields.get(name) == value for name, value in self.all_of)
        return stated and any(target.accepts(fields) for target in self.any_of)

    @property
    def keywords(self) -> tuple[str, ...]:
        """The keywords of the oracle reasoning, in the order of the fact tables."""
        first = (self.via,) if self.via else ()
        return first + tuple(target.keyword for target in self.any_of)

    def to_json(self) -> str:
        """Serialise as `{"any_of": [{"type": ..., field: value}], "all_of": {field: value}}`."""
        any_of = [{"type": target.type, **dict(target.where)} for target in self.any_of]
        return json.dumps({"any_of": any_of, "all_of": dict(self.all_of)})


def token_count(reasoning: str) -> int:
    """Count words and punctuation marks: an upper bound on the tokens of a word tokenizer.

    >>> token_count("olive oil, long-sleeve shirt")
    7
    """
    return len(re.findall(r"\w+|[^\w\s]", reasoning))
