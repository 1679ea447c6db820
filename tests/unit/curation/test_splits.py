"""The split: near-duplicates stay together, shares hold, and only ids, texts and the seed decide."""

from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrem.curation.splits import (
    MIN_WORDS_TO_DROP_ONE,
    group_draws,
    near_duplicate_groups,
    near_duplicate_signatures,
    split_draw,
    split_for_draw,
)
from lrem.data.known_positives import identity
from lrem.data.words import content_words

NOUNS = [
    f"{a}{b}" for a in ("bor", "kel", "mun", "tas", "viz", "wop") for b in ("dan", "fik", "lum", "pez", "rot", "zag")
]
SHARES = (0.25, 0.1, 0.15)  # rl, dev, test


def splits(queries: dict[str, str], seed: int = 0, shares: tuple[float, float, float] = SHARES) -> dict[str, str]:
    """Query id → split, as curation combines the functions."""
    labels = near_duplicate_groups(map(near_duplicate_signatures, queries.values()))
    keys = np.array([identity(one) for one in queries], np.int64)
    drawn = group_draws(keys, np.array([split_draw(one, seed) for one in queries]), labels)
    return {one: split_for_draw(value, *shares) for one, value in zip(queries, drawn, strict=True)}


def near(one: str, other: str) -> bool:
    """The definition: equal sets of content words, or equal after removing a word from one or both long sets."""
    a, b = set(content_words(one)), set(content_words(other))
    if a == b:
        return a != set() or one.strip().lower() == other.strip().lower()
    left = [a, *(a - {word} for word in a if len(a) >= MIN_WORDS_TO_DROP_ONE)]
    right = [b, *(b - {word} for word in b if len(b) >= MIN_WORDS_TO_DROP_ONE)]
    return any(x == y for x in left for y in right)


def variants(query: str, rng: Random) -> list[str]:
    """Near-duplicates of a query: other order, plurals, stop words, case, and one word more or less."""
    query_words = query.split()
    shuffled = rng.sample(query_words, len(query_words))
    wordings = [
        " ".join(shuffled),
        " ".join(f"{word}s" for word in query_words),
        f"THE {query.upper()} for my",
        f"  {', '.join(query_words)}! ",
    ]
    if len(set(content_words(query))) >= MIN_WORDS_TO_DROP_ONE - 1:  # one more makes it long enough
        wordings.append(f"{query} extra{rng.randrange(1000)}")
    if len(set(content_words(query))) >= MIN_WORDS_TO_DROP_ONE:
        wordings.append(" ".join(query_words[1:]))
    return wordings


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("red coat", "coats red", True),
        ("red coat", "The Red  Coat, for me", True),
        ("red coat", "blue coat", False),
        ("red coat", "red wool coat", False),
        ("red coat", "coat without red", False),  # a negation is a word
        ("belt with buckle", "belt without buckle", False),
        ("warm red wool coat", "warm red wool coat men", True),  # four and one more
        ("warm red coat", "warm red coat men", False),  # three and one more
        ("warm red wool coat men", "warm red silk coat men", True),  # both of five words, one differs
        ("warm red wool coat", "warm red silk coat", False),
        ("warm red wool coat men", "warm red wool coat men xl long", False),  # two more
        ("the", "for", False),  # queries of stop words only are compared as texts
        ("The ", "the", True),
        ("???", "!!!", False),
        ("batteries aa", "battery aa", True),
    ],
)
def test_near_duplicates(one: str, other: str, together: bool) -> None:
    labels = near_duplicate_groups(map(near_duplicate_signatures, [one, "quite another thing", other])).tolist()
    assert (labels[0] == labels[2]) is together
    assert near(one, other) is together
    assert labels[1] not in (labels[0], labels[2])


def test_a_chain_of_near_duplicates_is_one_group() -> None:
    chain = ["a1 b1 c1 d1 e1", "b1 c1 d1 e1 f1", "c1 d1 e1 f1 g1", "d1 e1 f1 g1 h1"]
    assert not near(chain[0], chain[2])
    assert near_duplicate_groups(map(near_duplicate_signatures, chain)).tolist() == [0, 0, 0, 0]
    assert near_duplicate_groups(map(near_duplicate_signatures, [*chain[:1], *chain[2:]])).tolist() == [0, 1, 1]


WORD = st.sampled_from(["red", "blue", "coat", "coats", "the", "for", "wool", "men", "warm", "without", "xl", "long"])
QUERY = st.lists(WORD, min_size=1, max_size=7).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(QUERY, min_size=1, max_size=30))
def test_groups_are_connected_components(queries: list[str]) -> None:
    labels = near_duplicate_groups(map(near_duplicate_signatures, queries)).tolist()
    reached = list(range(len(queries)))  # by repeated merging, from the definition alone
    for _ in queries:
        for i, j in combinations(range(len(queries)), 2):
            if near(queries[i], queries[j]):
                reached[i] = reached[j] = min(reached[i], reached[j])
    numbers = {first: n for n, first in enumerate(dict.fromkeys(reached))}
    same = [[a == b for b in labels] for a in labels]
    assert same == [[numbers[a] == numbers[b] for b in reached] for a in reached]


def random_log(rng: Random, size: int) -> dict[str, str]:
    """Random queries of one to seven words, most of them with planted near-duplicates, in random order."""
    rows: list[str] = []
    for _ in range(size):
        query = " ".join(rng.sample(NOUNS, rng.randint(1, 7)))
        rows += [query, *rng.sample(wordings := variants(query, rng), rng.randint(0, len(wordings)))]
    rng.shuffle(rows)
    return {f"q{i}": query for i, query in enumerate(rows)}


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 5), st.integers(1, 25))
def test_near_duplicates_are_never_separated(rng: Random, seed: int, size: int) -> None:
    log = random_log(rng, size)
    result = splits(log, seed)
    assert set(result) == set(log)
    for one, other in combinations(log, 2):
        if result[one] != result[other]:
            assert not near(log[one], log[other])


def test_planted_near_duplicates_of_a_large_log_stay_together() -> None:
    rng = Random(7)
    log, sets = {}, []
    for i in range(1500):
        query = " ".join([f"unique{i}", *rng.sample(NOUNS, rng.randint(0, 6))])
        ids = [f"{i}-{j}" for j in range(1 + len(variants(query, rng)))]
        log |= dict(zip(ids, [query, *variants(query, rng)], strict=False))
        sets.append([one for one in ids if one in log])
    result = splits(log)
    assert all(len({result[one] for one in ids}) == 1 for ids in sets)
    assert set(result.values()) == {"cold_start", "rl", "dev", "test"}


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_the_order_of_the_rows_does_not_matter(rng: Random, seed: int) -> None:
    log = random_log(rng, 15)
    ids = list(log)
    rng.shuffle(ids)
    assert splits({one: log[one] for one in ids}, seed) == splits(log, seed)


@pytest.mark.parametrize("name", ["q{}", "{}", "{:08d}", "b{:016x}", "query-{}-x"])
@pytest.mark.parametrize("seed", [0, 1, 12])
def test_shares_hold_for_ten_thousand_queries(name: str, seed: int) -> None:
    result = list(splits({name.format(i): f"word{i}" for i in range(10_000)}, seed).values())
    shares = {part: result.count(part) / len(result) for part in set(result)}
    expected = {"rl": 0.25, "dev": 0.1, "test": 0.15, "cold_start": 0.5}
    # four standard deviations of the share of independent draws
    assert shares == {part: pytest.approx(p, abs=4 * (p * (1 - p) / 10_000) ** 0.5) for part, p in expected.items()}


def test_another_seed_gives_another_split() -> None:
    log = {f"q{i}": f"word{i}" for i in range(2000)}
    one, other = splits(log, 0), splits(log, 1)
    assert sum(one[q] != other[q] for q in log) > 1000


def test_two_seeds_are_independent() -> None:
    log = {f"q{i}": f"word{i}" for i in range(2000)}
    one, other = splits(log, 0), splits(log, 1)
    both = sum(one[q] == "rl" == other[q] for q in log) / len(log)
    assert both == pytest.approx(0.25**2, abs=0.03)


def test_the_bounds_of_each_split() -> None:
    assert [
        split_for_draw(value, 0.25, 0.1, 0.15) for value in (0.0, 0.2499, 0.25, 0.7499, 0.75, 0.8999, 0.9, 0.9999)
    ] == [*("rl", "rl", "cold_start", "cold_start", "test", "test", "dev", "dev")]
    assert {split_for_draw(value / 100, 0.25, 0, 0) for value in range(100)} == {"rl", "cold_start"}


def test_a_group_takes_the_draw_of_its_smallest_key() -> None:
    keys = np.array([9, 4, 7, 1, 8])
    drawn = np.array([0.9, 0.4, 0.7, 0.1, 0.8])
    assert group_draws(keys, drawn, np.array([0, 1, 0, 1, 2])).tolist() == [0.7, 0.1, 0.7, 0.1, 0.8]
    assert 0 <= split_draw("", 0) < 1
