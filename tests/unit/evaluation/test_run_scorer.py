"""Scores, intervals, tests and gallery of a report against values worked out by hand."""

import pytest

from lrem.config import EvaluateConfig
from lrem.evaluation.run_scorer import MIN_QUERIES, RunScorer


def test_scores_intervals_and_tests_by_hand() -> None:
    """Five easy and four negative queries, each with one relevant item."""
    queries = {
        f"q{i}": {"query": f"query {i}", "category": "easy" if i < MIN_QUERIES else "negative"} for i in range(9)
    }
    qrels = {q: {f"i{q}": 1} for q in queries}
    runs = {
        "with": {q: [(f"i{q}", 2.0), ("x", 1.0)] for q in queries},
        "less": {q: [("x", 2.0), (f"i{q}", 1.0)] for q in queries},  # half as good
        "near": {q: [("x", 2.0)] if q == "q8" else [(f"i{q}", 2.0)] for q in queries},  # misses one query
    }
    scorer = RunScorer(queries, qrels, EvaluateConfig(primary="RR@10", gallery=3), seed=0)
    scores = {name: scorer.score(name, run) for name, run in runs.items()}
    assert [scores[name]["all"]["RR@10"] for name in runs] == pytest.approx([1, 0.5, 8 / 9])
    assert scores["near"]["negative"]["RR@10"] == scores["near"]["hard"]["RR@10"] == 0.75
    assert scorer.intervals("less") == {
        "all": {"RR@10": [0.5, 0.5]},
        "easy": {"RR@10": [0.5, 0.5]},
    }  # four negative queries are too few
    rows = {(row["b"], row["slice"]): row for row in scorer.compare([("with", "less"), ("with", "near")])}
    assert set(rows) == {(name, part) for name in ("less", "near") for part in ("all", "easy")}
    tests = {key: (row["difference"], row["p"], row["p_holm"]) for key, row in rows.items()}
    # two of all sign patterns of nine (or five) equal differences are as extreme; Holm doubles the smaller p of a slice
    assert tests["less", "all"] == pytest.approx((0.5, 2 / 2**9, 4 / 2**9))
    assert tests["less", "easy"] == pytest.approx((0.5, 2 / 2**5, 4 / 2**5))
    assert tests["near", "all"] == pytest.approx((1 / 9, 1, 1))
    assert tests["near", "easy"] == pytest.approx((0, 1, 1))
    assert scorer.differences("with", "less", queries) == [0.5] * 9
    assert scorer.unjudged(runs["with"]) == {"10": 0.5}


def test_gallery_shows_gains_losses_and_the_first_of_each_category() -> None:
    gains = {"q1": 0.0, "q2": 1.0, "q3": -1.0, "q4": 0.5, "q5": -0.5, "q6": 1.0}
    queries = {q: {"query": q, "category": "easy" if q < "q5" else None} for q in gains}
    hit, second, miss = [("i", 2.0)], [("x", 2.0), ("i", 1.0)], [("x", 1.0)]
    runs = {1.0: (miss, hit), -1.0: (hit, miss), 0.5: (second, hit), -0.5: (hit, second), 0.0: (hit, hit)}
    without, with_reasoning = ({q: runs[gain][side] for q, gain in gains.items()} for side in (0, 1))
    reasonings = dict.fromkeys(gains, "wool") | {"q6": ""}  # a query without a reasoning is not shown
    sizes = {3: ["q2", "q3", "q1"], 6: ["q2", "q4", "q3", "q5", "q1"], 0: []}
    for size, shown in sizes.items():
        config = EvaluateConfig(primary="RR@10", gallery=size)
        scorer = RunScorer(queries, {q: {"i": 3} for q in queries}, config, seed=0)
        for name, run in (("never", without), ("always", with_reasoning)):
            scorer.score(name, run)
        modes = {"never": without, "always": with_reasoning}
        rows = scorer.gallery("never", "always", modes, reasonings, {"i": "a coat"})
        assert [row["query_id"] for row in rows] == shown
        assert all(row["gain"] == gains[row["query_id"]] for row in rows)
