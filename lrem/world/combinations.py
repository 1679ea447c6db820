"""Every query of the shop: each fact combined with each constraint, and what the two mean together."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lrem.world.facts import Bridge, Facts, Knowledge
from lrem.world.meaning import Meaning, TargetProduct

HARD = ("question", "alternative", "negative", "knowledge")
CATEGORIES = (*HARD, "easy")


@dataclass(frozen=True)
class Combination:
    """A fact with a constraint. `subject`, `limit` and `type` fill the slots of a wording of `kind`."""

    category: str
    kind: str
    fact: str
    constraint: str
    meaning: Meaning
    subject: str
    limit: str = ""
    type: str = ""
    step: str = ""  # of a two-step fact: its second step, which is the fact of other queries

    def query_text(self, template: str) -> str:
        """Fill in a wording and return the query text."""
        return template.format(subject=self.subject, limit=self.limit, type=self.type)


def all_combinations(facts: Facts) -> list[Combination]:
    """Return every combination of the one-step facts, in the order of the tables."""
    return [
        *_needs(facts, "question", "occasion", facts.occasions),
        *_knowledge(facts),
        *_alternatives(facts),
        *_negatives(facts),
        *_easy(facts),
    ]


def bridged_combinations(facts: Facts) -> list[Combination]:
    """Return every combination of the two-step facts, in the order of the tables.

    Second steps that no table of knowledge has are included, each group before the two-step facts that lead to it.

    Raises:
        ValueError: a bridge leads to a kind of need that is neither in knowledge.yaml nor has needs of its own.
    """
    combinations: list[Combination] = []
    for family, bridge in facts.bridges.items():
        for kind, need_kind in bridge.need_kinds.items():
            entry = facts.knowledge.get(kind)
            if need_kind.needs:
                second_steps = list(_needs(facts, "knowledge", f"{family} {kind}", need_kind.needs))
                combinations += second_steps
            elif entry is not None:
                second_steps = [*_needs(facts, "knowledge", kind, entry.needs), *_values(facts, kind, entry)]
            else:
                raise ValueError(
                    f"bridges.yaml: {family} asks for {kind}, which has no needs here or in knowledge.yaml: add them"
                )
            combinations += _bridged(family, bridge, f"{family} {kind}", second_steps)
    return combinations


def _bridged(family: str, bridge: Bridge, kind: str, second_steps: list[Combination]) -> Iterator[Combination]:
    """Yield the second steps again, with a subject that implies theirs ("oslo" for "cold climate")."""
    for step in second_steps:
        for subject in bridge.subjects.get(step.subject, ()):
            meaning = replace(step.meaning, via=step.subject)
            fact = f"{family}:{subject}"
            yield replace(step, kind=kind, fact=fact, meaning=meaning, subject=subject, step=step.fact)


def _needs(facts: Facts, category: str, kind: str, table: Mapping[str, tuple[str, ...]]) -> Iterator[Combination]:
    """Yield subjects that call for types, each with a side condition on a dimension that all of these types have."""
    for subject, types in table.items():
        shared = set.intersection(*(set(facts.types[name].has) for name in types))
        for field, dimension in facts.dimensions.items():
            if field not in shared or not dimension.limit:
                continue
            for value in dimension.values:
                meaning = Meaning(tuple(TargetProduct(name) for name in types), ((field, value),))
                limit = dimension.limit.format(value=value)
                yield Combination(category, kind, f"{kind}:{subject}", value, meaning, subject, limit)


def _knowledge(facts: Facts) -> Iterator[Combination]:
    for kind, entry in facts.knowledge.items():
        yield from _needs(facts, "knowledge", kind, entry.needs)
        yield from _values(facts, kind, entry)


def _values(facts: Facts, kind: str, entry: Knowledge) -> Iterator[Combination]:
    """Yield subjects that call for attribute values, for each type that can have these values."""
    for subject, values in entry.values.items():
        for name, product_type in facts.types.items():
            if product_type.department not in entry.departments:
                continue
            fields = [field for field in entry.about if field in product_type.has]
            conditions = [(f, v) for v in values for f in fields if v in facts.dimensions[f].values]
            if conditions:
                meaning = Meaning(tuple(TargetProduct(name, (condition,)) for condition in conditions))
                yield Combination("knowledge", kind, f"{kind}:{subject}", name, meaning, subject, type=name)


def _alternatives(facts: Facts) -> Iterator[Combination]:
    """Yield a premium brand with a type, which means the same type from the brand's cheaper rivals."""
    for department, brands in facts.brands.items():
        types = [name for name, entry in facts.types.items() if entry.department == department]
        for brand, rivals in brands.rivals.items():
            for name in types:
                meaning = Meaning(tuple(TargetProduct(name, (("brand", rival),)) for rival in rivals))
                yield Combination("alternative", "rival", f"rival:{brand}", name, meaning, brand, type=name)


def _negatives(facts: Facts) -> Iterator[Combination]:
    """Yield a type without one value, which means every other value of the same dimension."""
    for field, dimension in facts.dimensions.items():
        if not dimension.negated:
            continue
        types = [name for name, entry in facts.types.items() if field in entry.has]
        for value in dimension.values:
            for name in types:
                others = tuple(TargetProduct(name, ((field, v),)) for v in dimension.values if v != value)
                fact = f"not:{field}:{value}"
                yield Combination("negative", dimension.negated, fact, name, Meaning(others), value, type=name)


def _easy(facts: Facts) -> Iterator[Combination]:
    """Yield a type with one word of its titles; these queries need no reasoning."""
    for name, entry in facts.types.items():
        conditions = [(field, value) for field in entry.has for value in facts.dimensions[field].values]
        conditions += [("brand", brand) for brand in facts.brands_of(name).tier]
        for field, value in conditions:
            meaning = Meaning((TargetProduct(name, ((field, value),)),))
            yield Combination("easy", "lexical", f"easy:{name}", f"{field}={value}", meaning, name, value)
