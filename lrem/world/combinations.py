"""Every query the shop can understand: each fact with each constraint, and what the two mean together.

Knows facts and meanings; does not know the items, nor which combinations are kept for the test.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lrem.world.facts import Bridge, Facts, Knowledge
from lrem.world.meaning import Meaning, Wanted

HARD = ("question", "alternative", "negative", "knowledge")
CATEGORIES = (*HARD, "easy")


@dataclass(frozen=True)
class Combination:
    """A fact under a constraint. `subject`, `limit` and `type` fill the slots of a wording of `kind`."""

    category: str
    kind: str
    fact: str
    constraint: str
    meaning: Meaning
    subject: str
    limit: str = ""
    type: str = ""
    step: str = ""  # of a fact of two steps: the second one, a fact that other queries ask for

    def worded(self, template: str) -> str:
        """The query text."""
        return template.format(subject=self.subject, limit=self.limit, type=self.type)


def all_combinations(facts: Facts) -> list[Combination]:
    """Every combination of facts of one step, in table order."""
    return [
        *_needs(facts, "question", "occasion", facts.occasions),
        *_knowledge(facts),
        *_alternatives(facts),
        *_negatives(facts),
        *_easy(facts),
    ]


def bridged_combinations(facts: Facts) -> list[Combination]:
    """Every combination of facts of two steps, in table order; before them those of second steps of their own."""
    found: list[Combination] = []
    for family, bridge in facts.bridges.items():
        for kind, ask in bridge.asks.items():
            entry = facts.knowledge.get(kind)
            if ask.needs:
                known = list(_needs(facts, "knowledge", f"{family} {kind}", ask.needs))
                found += known
            elif entry is not None:
                known = [*_needs(facts, "knowledge", kind, entry.needs), *_values(facts, kind, entry)]
            else:
                raise ValueError(f"bridges.yaml: {family} asks for {kind}, which is no knowledge and has no needs")
            found += _bridged(family, bridge, f"{family} {kind}", known)
    return found


def _bridged(family: str, bridge: Bridge, kind: str, known: list[Combination]) -> Iterator[Combination]:
    """The same needs, asked for by a subject that stands for theirs."""
    for one in known:
        for subject in bridge.subjects.get(one.subject, ()):
            meaning = replace(one.meaning, via=one.subject)
            yield replace(one, kind=kind, fact=f"{family}:{subject}", meaning=meaning, subject=subject, step=one.fact)


def _needs(facts: Facts, category: str, kind: str, table: Mapping[str, tuple[str, ...]]) -> Iterator[Combination]:
    """A subject that calls for types, with a side condition that all of these types know."""
    for subject, types in table.items():
        shared = set.intersection(*(set(facts.types[name].has) for name in types))
        for field, dimension in facts.dimensions.items():
            if field not in shared or not dimension.limit:
                continue
            for value in dimension.values:
                meaning = Meaning(tuple(Wanted(name) for name in types), ((field, value),))
                limit = dimension.limit.format(value=value)
                yield Combination(category, kind, f"{kind}:{subject}", value, meaning, subject, limit)


def _knowledge(facts: Facts) -> Iterator[Combination]:
    for kind, entry in facts.knowledge.items():
        yield from _needs(facts, "knowledge", kind, entry.needs)
        yield from _values(facts, kind, entry)


def _values(facts: Facts, kind: str, entry: Knowledge) -> Iterator[Combination]:
    """A subject that calls for attribute values, for each type that can have them."""
    for subject, values in entry.values.items():
        for name, product_type in facts.types.items():
            if product_type.department not in entry.departments:
                continue
            fields = [field for field in entry.about if field in product_type.has]
            known = [(f, v) for v in values for f in fields if v in facts.dimensions[f].values]
            if known:
                meaning = Meaning(tuple(Wanted(name, (pair,)) for pair in known))
                yield Combination("knowledge", kind, f"{kind}:{subject}", name, meaning, subject, type=name)


def _alternatives(facts: Facts) -> Iterator[Combination]:
    """A premium brand's type: the same type from its cheaper rivals."""
    for department, brands in facts.brands.items():
        types = [name for name, entry in facts.types.items() if entry.department == department]
        for brand, rivals in brands.rivals.items():
            for name in types:
                meaning = Meaning(tuple(Wanted(name, (("brand", rival),)) for rival in rivals))
                yield Combination("alternative", "rival", f"rival:{brand}", name, meaning, brand, type=name)


def _negatives(facts: Facts) -> Iterator[Combination]:
    """A type without one value: every other value of the same dimension."""
    for field, dimension in facts.dimensions.items():
        if not dimension.negated:
            continue
        types = [name for name, entry in facts.types.items() if field in entry.has]
        for value in dimension.values:
            for name in types:
                others = tuple(Wanted(name, ((field, v),)) for v in dimension.values if v != value)
                fact = f"not:{field}:{value}"
                yield Combination("negative", dimension.negated, fact, name, Meaning(others), value, type=name)


def _easy(facts: Facts) -> Iterator[Combination]:
    """A type and one word of its titles: nothing to think about."""
    for name, entry in facts.types.items():
        known = [(field, value) for field in entry.has for value in facts.dimensions[field].values]
        known += [("brand", brand) for brand in facts.brands_of(name).tier]
        for pair in known:
            meaning = Meaning((Wanted(name, (pair,)),))
            yield Combination("easy", "lexical", f"easy:{name}", f"{pair[0]}={pair[1]}", meaning, name, pair[1])
