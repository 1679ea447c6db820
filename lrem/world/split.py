"""Which queries are asked in training and which are kept for the test.

Of every fact some constraints and some wordings are held out together: a test query is a fact that training
knows, under a constraint and in a wording that training knows, but never this fact with either of the two:
interpolation. Of every fact of two steps some kinds of need are held out: the test asks what oslo has to do with
bedrooms, of which training told the climate and, elsewhere, what that climate means for bedrooms: composition.
Does not know what a query means, nor the items.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from lrem.world.combinations import CATEGORIES, HARD, Combination
from lrem.world.facts import Facts

HELD_OUT_CONSTRAINTS = 0.25  # of a fact's constraints, at least one
HELD_OUT_WORDINGS = 0.25  # of the wordings of its kind, at least one
TAUGHT_ASKS = 0.34  # of what can be asked of a subject of two steps, at least one
EASY_SHARE = 0.18  # of the training queries; the hard categories share the rest equally

Value = TypeVar("Value")


@dataclass(frozen=True)
class Asked:
    """A combination in one wording (its number among those of the kind)."""

    combination: Combination
    wording: int
    query: str

    @property
    def features(self) -> tuple[str, ...]:
        """What a test query may only contain if training does: fact, its second step if any, constraint, wording."""
        c = self.combination
        facts = (c.fact, c.step) if c.step else (c.fact,)
        return *facts, f"{c.kind} {c.constraint}", f"{c.category} {c.kind} {self.wording}"


def split(
    combinations: Iterable[Combination], facts: Facts, train: int, test: int, rng: Random
) -> tuple[list[Asked], list[Asked]]:
    """`train` and `test` queries without a shared text or a shared (fact, constraint).

    Raises:
        ValueError: a category has fewer queries than asked of it.
    """
    by_category = {same[0].category: same for same in _grouped(combinations, "category")}
    train_set: list[Asked] = []
    test_set: list[Asked] = []
    for category in CATEGORIES:
        known, unknown = _pools(by_category.get(category, []), facts, rng)
        drawn = _take(_covering_first(_shuffled(known, rng)), _train_share(category, train), category, "train")
        seen = {feature for asked in drawn for feature in asked.features}
        allowed = [asked for asked in unknown if seen.issuperset(asked.features)]
        train_set += drawn
        number = CATEGORIES.index(category)
        quota = test * (number + 1) // len(CATEGORIES) - test * number // len(CATEGORIES)
        test_set += _take(_shuffled(allowed, rng), quota, category, "test")
    rng.shuffle(train_set)
    rng.shuffle(test_set)
    return train_set, test_set


def split_bridged(
    combinations: Iterable[Combination], facts: Facts, known: Iterable[Asked], train: int, test: int, rng: Random
) -> tuple[list[Asked], list[Asked]]:
    """`train` and `test` queries of facts of two steps; what is tested is taught by them and `known` together, apart.

    Raises:
        ValueError: there are fewer queries than asked.
    """
    wordings = {f"{family} {kind}": ask.wordings for family, b in facts.bridges.items() for kind, ask in b.asks.items()}
    told: list[Asked] = []
    untold: list[Asked] = []
    for same_fact in _grouped(combinations, "fact"):
        kinds = list(dict.fromkeys(c.kind for c in same_fact))
        taught = set(rng.sample(kinds, max(1, round(len(kinds) * TAUGHT_ASKS))))
        for combination in same_fact:
            pool = told if combination.kind in taught else untold
            pool += [
                Asked(combination, number, combination.worded(template))
                for number, template in enumerate(wordings[combination.kind])
            ]
    drawn = _take(_covering_first(_shuffled(told, rng)), train, "bridged", "train")
    seen = {feature for asked in [*known, *drawn] for feature in asked.features}
    allowed = [asked for asked in untold if seen.issuperset(asked.features)]
    return drawn, _take(_shuffled(allowed, rng), test, "bridged", "test")


def _train_share(category: str, train: int) -> int:
    easy = round(train * EASY_SHARE)
    if category == "easy":
        return easy
    number, hard = HARD.index(category), train - easy
    return hard * (number + 1) // len(HARD) - hard * number // len(HARD)


def _pools(combinations: list[Combination], facts: Facts, rng: Random) -> tuple[list[Asked], list[Asked]]:
    """All queries training may ask, and all the test may ask; the rest mix the two and are never asked."""
    known: list[Asked] = []
    unknown: list[Asked] = []
    for same_fact in _grouped(combinations, "fact"):
        wordings = facts.wordings[same_fact[0].category][same_fact[0].kind]
        constraints = _held_out(list(dict.fromkeys(c.constraint for c in same_fact)), HELD_OUT_CONSTRAINTS, rng)
        numbers = _held_out(range(len(wordings)), HELD_OUT_WORDINGS, rng)
        for combination in same_fact:
            for number, template in enumerate(wordings):
                asked = Asked(combination, number, combination.worded(template))
                if combination.constraint in constraints and number in numbers:
                    unknown.append(asked)
                elif combination.constraint not in constraints and number not in numbers:
                    known.append(asked)
    return known, unknown


def _grouped(combinations: Iterable[Combination], key: str) -> list[list[Combination]]:
    """The combinations that share a field, in the order in which its values first come."""
    groups: dict[str, list[Combination]] = defaultdict(list)
    for combination in combinations:
        groups[getattr(combination, key)].append(combination)
    return list(groups.values())


def _held_out(values: Sequence[Value], share: float, rng: Random) -> set[Value]:
    """A part of `values`, at least one, but never the only one: training needs one too."""
    return set(rng.sample(values, max(1, round(len(values) * share)))) if len(values) > 1 else set()


def _shuffled(pool: list[Asked], rng: Random) -> list[Asked]:
    """Shuffled, with the kinds taking turns, so that a large fact table does not crowd out a small one."""
    turn: dict[str, int] = defaultdict(int)
    order = []
    for asked in rng.sample(pool, len(pool)):
        order.append((turn[asked.combination.kind], asked))
        turn[asked.combination.kind] += 1
    return [asked for _, asked in sorted(order, key=lambda pair: pair[0])]


def _covering_first(pool: list[Asked]) -> list[Asked]:
    """The same queries, those that bring a new fact, constraint or wording first."""
    seen: set[str] = set()
    first: list[Asked] = []
    later: list[Asked] = []
    for asked in pool:
        (later if seen.issuperset(asked.features) else first).append(asked)
        seen.update(asked.features)
    return first + later


def _take(pool: list[Asked], count: int, category: str, name: str) -> list[Asked]:
    if count > len(pool):
        raise ValueError(
            f"{count} {category} {name} queries are asked, {len(pool)} exist: ask for fewer, or for more products"
        )
    return pool[:count]
