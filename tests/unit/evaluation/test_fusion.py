"""Reciprocal rank fusion against its formula."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.evaluation.fusion import rrf
from lrem.evaluation.metrics import Run

IDS = st.text("abcdef", min_size=1, max_size=2)
RUNS = st.dictionaries(
    st.sampled_from(["p", "q", "r"]),
    st.lists(IDS, max_size=8, unique=True).map(lambda items: [(item, -1.0 * n) for n, item in enumerate(items)]),
)


def test_rrf_by_hand() -> None:
    first: Run = {"q": [("a", 9.0), ("b", 8.0), ("c", 7.0)], "p": [("x", 1.0)]}
    second: Run = {"q": [("c", 0.9), ("d", 0.8)], "r": [("y", 1.0), ("z", 0.5)]}
    fused = rrf([first, second], depth=10)
    assert list(fused) == ["q", "p", "r"]
    assert fused["q"] == [
        ("c", pytest.approx(1 / 63 + 1 / 61)),
        ("a", pytest.approx(1 / 61)),
        ("b", pytest.approx(1 / 62)),  # b and d have equal sums and equal best ranks, so their ids decide
        ("d", pytest.approx(1 / 62)),
    ]
    assert fused["r"] == [("y", pytest.approx(1 / 61)), ("z", pytest.approx(1 / 62))]
    assert [item for item, _ in rrf([first, second], depth=1)["q"]] == ["c"]
    assert rrf([first, second], depth=1, k=0)["q"] == [("c", pytest.approx(1 / 3 + 1))]
    assert rrf([], depth=3) == {}


def test_rrf_breaks_ties_by_the_best_rank() -> None:
    """With k = 0, two results at rank 2 score as much as one at rank 1."""
    runs: list[Run] = [{"q": [("z", 1.0), ("a", 0.5)]}, {"q": [("y", 1.0), ("a", 0.5)]}]
    assert rrf(runs, depth=3, k=0)["q"] == [("y", 1.0), ("z", 1.0), ("a", 1.0)]


@given(st.lists(RUNS, max_size=4), st.integers(1, 5))
def test_rrf_does_not_depend_on_the_order_of_the_runs(runs: list[Run], depth: int) -> None:
    fused = rrf(runs, depth)
    for order in itertools.permutations(runs):
        assert rrf(order, depth) == fused
    assert all(len(hits) <= depth for hits in fused.values())
    assert all(scores == sorted(scores, reverse=True) for scores in ([s for _, s in hits] for hits in fused.values()))


@given(RUNS)
def test_rrf_of_one_run_keeps_its_order(run: Run) -> None:
    assert {q: [item for item, _ in hits] for q, hits in rrf([run], 9).items()} == {
        q: [item for item, _ in hits] for q, hits in run.items()
    }
