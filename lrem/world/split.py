"""The split into training and test queries.

Interpolation: of every fact some constraints and some wordings are held out together. A test query combines a fact
that training has, a constraint that training has and a wording that training has, but training never combines this
fact with either of the two.

Composition: of every two-step fact some kinds of need are held out. The test asks, for instance, what oslo needs in a
bedroom; training has shown oslo's climate with other kinds of need and, with other queries, what that climate needs in
a bedroom.
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
TRAIN_NEED_KINDS = 0.34  # of the kinds of need of a two-step fact, at least one
EASY_SHARE = 0.18  # of the training queries; the hard categories share the rest equally

Value = TypeVar("Value")


@dataclass(frozen=True)
class SampledQuery:
    """A combination in one wording; `wording` is its number among the wordings of the kind."""

    combination: Combination
    wording: int
    text: str

    @property
    def features(self) -> tuple[str, ...]:
        """The parts that a test query may have only if training has them: fact, second step, constraint, wording."""
        c = self.combination
        facts = (c.fact, c.step) if c.step else (c.fact,)
        return *facts, f"{c.kind} {c.constraint}", f"{c.category} {c.kind} {self.wording}"


def split(
    combinations: Iterable[Combination], facts: Facts, train: int, test: int, rng: Random
) -> tuple[list[SampledQuery], list[SampledQuery]]:
    """Sample `train` and `test` queries that share no text and no (fact, constraint).

    Raises:
        ValueError: a category has too few queries.
    """
    by_category = {same[0].category: same for same in _grouped(combinations, "category")}
    train_set: list[SampledQuery] = []
    test_set: list[SampledQuery] = []
    for category in CATEGORIES:
        train_pool, test_pool = _pools(by_category.get(category, []), facts, rng)
        drawn = _take(_covering_first(_shuffled(train_pool, rng)), _train_quota(category, train), category, "train")
        allowed = _covered(test_pool, drawn)
        train_set += drawn
        number = CATEGORIES.index(category)
        quota = test * (number + 1) // len(CATEGORIES) - test * number // len(CATEGORIES)
        test_set += _take(_shuffled(allowed, rng), quota, category, "test")
    rng.shuffle(train_set)
    rng.shuffle(test_set)
    return train_set, test_set


def split_bridged(
    combinations: Iterable[Combination],
    facts: Facts,
    one_step_train: Iterable[SampledQuery],
    train: int,
    test: int,
    rng: Random,
) -> tuple[list[SampledQuery], list[SampledQuery]]:
    """Sample `train` and `test` queries of two-step facts.

    Each part of a test query is in the new training queries or in `one_step_train`, but never the two steps together.

    Raises:
        ValueError: there are too few queries.
    """
    wordings = {
        f"{family} {kind}": need_kind.wordings
        for family, bridge in facts.bridges.items()
        for kind, need_kind in bridge.need_kinds.items()
    }
    train_pool: list[SampledQuery] = []
    test_pool: list[SampledQuery] = []
    for same_fact in _grouped(combinations, "fact"):
        kinds = list(dict.fromkeys(c.kind for c in same_fact))
        train_kinds = set(rng.sample(kinds, max(1, round(len(kinds) * TRAIN_NEED_KINDS))))
        for combination in same_fact:
            pool = train_pool if combination.kind in train_kinds else test_pool
            pool += [
                SampledQuery(combination, number, combination.query_text(template))
                for number, template in enumerate(wordings[combination.kind])
            ]
    drawn = _take(_covering_first(_shuffled(train_pool, rng)), train, "bridged", "train")
    allowed = _covered(test_pool, [*one_step_train, *drawn])
    return drawn, _take(_shuffled(allowed, rng), test, "bridged", "test")


def _covered(pool: list[SampledQuery], train_set: list[SampledQuery]) -> list[SampledQuery]:
    """Return the queries of `pool` whose features are all in the training queries."""
    features = {feature for query in train_set for feature in query.features}
    return [query for query in pool if features.issuperset(query.features)]


def _train_quota(category: str, train: int) -> int:
    easy = round(train * EASY_SHARE)
    if category == "easy":
        return easy
    number, hard = HARD.index(category), train - easy
    return hard * (number + 1) // len(HARD) - hard * number // len(HARD)


def _pools(combinations: list[Combination], facts: Facts, rng: Random) -> tuple[list[SampledQuery], list[SampledQuery]]:
    """Return the candidates for training and for the test; queries with only one held-out part are dropped."""
    train_pool: list[SampledQuery] = []
    test_pool: list[SampledQuery] = []
    for same_fact in _grouped(combinations, "fact"):
        wordings = facts.wordings[same_fact[0].category][same_fact[0].kind]
        constraints = _held_out(list(dict.fromkeys(c.constraint for c in same_fact)), HELD_OUT_CONSTRAINTS, rng)
        numbers = _held_out(range(len(wordings)), HELD_OUT_WORDINGS, rng)
        for combination in same_fact:
            for number, template in enumerate(wordings):
                query = SampledQuery(combination, number, combination.query_text(template))
                if combination.constraint in constraints and number in numbers:
                    test_pool.append(query)
                elif combination.constraint not in constraints and number not in numbers:
                    train_pool.append(query)
    return train_pool, test_pool


def _grouped(combinations: Iterable[Combination], key: str) -> list[list[Combination]]:
    """Group the combinations by a field, in the order in which its values first occur."""
    groups: dict[str, list[Combination]] = defaultdict(list)
    for combination in combinations:
        groups[getattr(combination, key)].append(combination)
    return list(groups.values())


def _held_out(values: Sequence[Value], share: float, rng: Random) -> set[Value]:
    """Sample a share of `values`, at least one; none if there is only one, because training needs one too."""
    return set(rng.sample(values, max(1, round(len(values) * share)))) if len(values) > 1 else set()


def _shuffled(pool: list[SampledQuery], rng: Random) -> list[SampledQuery]:
    """Shuffle, then alternate between the kinds, so that a large fact table does not crowd out a small one."""
    counts: dict[str, int] = defaultdict(int)
    order = []
    for query in rng.sample(pool, len(pool)):
        order.append((counts[query.combination.kind], query))
        counts[query.combination.kind] += 1
    return [query for _, query in sorted(order, key=lambda pair: pair[0])]


def _covering_first(pool: list[SampledQuery]) -> list[SampledQuery]:
    """Reorder the queries so that those with a new fact, constraint or wording come first."""
    seen: set[str] = set()
    first: list[SampledQuery] = []
    later: list[SampledQuery] = []
    for query in pool:
        (later if seen.issuperset(query.features) else first).append(query)
        seen.update(query.features)
    return first + later


def _take(pool: list[SampledQuery], count: int, category: str, name: str) -> list[SampledQuery]:
    if count > len(pool):
        raise ValueError(
            f"{count} {category} {name} queries are requested, but only {len(pool)} exist: request fewer queries, or "
            "more products"
        )
    return pool[:count]
