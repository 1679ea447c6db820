"""What a query means: an exact predicate on item fields, and the keywords that say it.

Knows field names and values only; does not know how a query is worded or where items come from.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

Fields = Mapping[str, str]  # type, brand and the dimensions an item has, e.g. {"type": "coat", "colour": "red"}
Condition = tuple[str, str]  # (field, value)


@dataclass(frozen=True)
class Wanted:
    """One kind of product that answers a query: a type, and values it must have."""

    type: str
    where: tuple[Condition, ...] = ()

    def accepts(self, fields: Fields) -> bool:
        """Whether the item is of the type and has every value."""
        return fields["type"] == self.type and all(fields.get(name) == value for name, value in self.where)

    @property
    def keyword(self) -> str:
        """The words of its titles.

        >>> Wanted("sofa", (("upholstery", "velvet"),)).keyword
        'velvet sofa'
        """
        return " ".join([*(value for _, value in self.where), self.type])


@dataclass(frozen=True)
class Meaning:
    """A query's meaning: any of the wanted kinds, under the conditions that the query itself states.

    `via` is what has to be known first ("cold climate" for oslo); it is no condition, but reasoning begins with it.
    """

    any_of: tuple[Wanted, ...]
    all_of: tuple[Condition, ...] = ()
    via: str = ""

    def accepts(self, fields: Fields) -> bool:
        """Relevance, exactly: a pure function of the item's fields.

        >>> warm = Meaning((Wanted("scarf"), Wanted("gloves")), (("colour", "red"),))
        >>> warm.accepts({"type": "gloves", "colour": "red"}), warm.accepts({"type": "hat", "colour": "red"})
        (True, False)
        """
        stated = all(fields.get(name) == value for name, value in self.all_of)
        return stated and any(wanted.accepts(fields) for wanted in self.any_of)

    @property
    def keywords(self) -> tuple[str, ...]:
        """The perfect reasoning, in the order of the fact tables."""
        first = (self.via,) if self.via else ()
        return first + tuple(wanted.keyword for wanted in self.any_of)

    def to_json(self) -> str:
        """`{"any_of": [{"type": ..., field: value}], "all_of": {field: value}}`."""
        any_of = [{"type": wanted.type, **dict(wanted.where)} for wanted in self.any_of]
        return json.dumps({"any_of": any_of, "all_of": dict(self.all_of)})


def token_count(reasoning: str) -> int:
    """Word-level tokens, a comma or a hyphen counted as one: an upper bound for a word tokenizer.

    >>> token_count("olive oil, long-sleeve shirt")
    7
    """
    return len(re.findall(r"\w+|[^\w\s]", reasoning))
