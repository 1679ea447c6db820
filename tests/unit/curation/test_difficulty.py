"""Measures of a query's difficulty, thresholds, and histograms."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lrem.curation.difficulty import QueryDifficulty, histogram, is_hard, measure_difficulty


def test_difficulty_by_hand() -> None:
    ranking = [("a", 4.0), ("b", 3.0), ("c", 1.0)]
    difficulty = measure_difficulty("a warm coat for men", ranking, {"b", "x", "y"}, ["Coats of wool", "men's hat"], 3)
    # the titles contain coat and men, of warm, coat, men
    assert difficulty == QueryDifficulty(recall=1 / 3, margin=0.75, overlap=2 / 3)
    assert measure_difficulty("the", [], set(), [], 3) == QueryDifficulty(None, 0.0, 0.0)
    negative_scores = [("a", -0.5), ("b", -1.0)]
    assert measure_difficulty("coat", negative_scores, set(), ["coat"], 2) == QueryDifficulty(None, 1.0, 1.0)
    assert measure_difficulty("coat", [("a", 2.0)], {"a"}, [], 1) == QueryDifficulty(1.0, 0.0, 0.0)
    assert measure_difficulty("coat", [("a", 2.0)], {"a"}, [], 30).margin == 1.0  # no other item matches at all


def test_recall_is_a_share_of_what_k_results_can_hold() -> None:
    relevant = {f"i{n}" for n in range(60)}
    all_relevant = [(f"i{n}", 9.0 - n / 30) for n in range(30)]
    half_relevant = [(f"i{n}", 9.0 - n / 30) for n in range(45, 75)]
    assert measure_difficulty("coat", all_relevant, relevant, [], 30).recall == 1.0
    assert measure_difficulty("coat", half_relevant, relevant, [], 30).recall == 0.5


def test_a_query_is_hard_below_any_threshold() -> None:
    difficulty = QueryDifficulty(0.7, 0.2, 0.5)
    assert not is_hard(difficulty, 0.7, 0.2, 0.5)  # below, not at
    assert is_hard(difficulty, 0.71, None, None)
    assert is_hard(difficulty, None, 0.21, None)
    assert is_hard(difficulty, None, None, 0.51)
    assert is_hard(difficulty, 0.1, 0.1, 0.51)


def test_a_query_is_hard_if_no_threshold_can_be_compared() -> None:
    difficulty = QueryDifficulty(0.7, 0.2, 0.5)
    assert is_hard(difficulty, None, None, None)
    assert is_hard(difficulty._replace(recall=None), 0.1, None, None)
    assert not is_hard(difficulty._replace(recall=None), 1.0, 0.1, None)  # the margin can be compared


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=50))
def test_histogram_counts_like_numpy(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    # numpy rounds the edges of its own bins; ours are at whole values of value × 10
    counts = np.histogram([value * 10 for value in known], bins=10, range=(0, 10))[0].tolist()
    assert histogram(values) == [*counts, len(values) - len(known)]
    assert histogram([7.5]) == histogram([1.0])  # a margin may exceed 1
