"""Measures against values by hand, and against trec_eval on files written by lrem.evaluation.trec."""

import random
from pathlib import Path

import pytest
import pytrec_eval

from lrem.evaluation.metrics import DEPTH, measures, per_query, slices_of, summarise, unjudged_share
from lrem.evaluation.trec import write_qrels, write_run

QRELS = {"1": {"a": 1, "b": 1, "c": 1, "d": 1}, "2": {"x": 1, "y": 0}, "3": {"z": 1}}
RUN = {"1": [("a", 0.9), ("n", 0.9), ("b", 0.9), ("m", 0.1)], "2": [("y", 1.0), ("x", 0.5)]}
NAMES = ["hit_rate", "precision", "nDCG@10", "RR@10", "R@100", "P@100", "Success@1", "Success@10", "AP"]


def both(scores: dict[str, dict[str, float]]) -> dict[str, tuple[float, float]]:
    return {query_id: (values["hit_rate"], values["precision"]) for query_id, values in scores.items()}


def test_hit_rate_is_a_recall_and_precision_divides_by_k() -> None:
    scores = both(per_query(RUN, QRELS, k=3, precision_k=2))
    assert scores == {"1": (0.5, 0.5), "2": (1.0, 0.5), "3": (0.0, 0.0)}


def test_ties_keep_the_order_of_the_run() -> None:
    """All three scores of query 1 are equal; trec_eval alone would sort them by id."""
    assert both(per_query(RUN, QRELS, k=1, precision_k=1))["1"] == (0.25, 1.0)
    assert both(per_query({"1": [("n", 0.9), ("a", 0.9)]}, QRELS, k=1, precision_k=1))["1"] == (0.0, 0.0)


def test_every_measure_by_hand() -> None:
    """Grades 3, 0, 1 at ranks 1, 2, 4, for a query with the ideal order 3, 2, 1."""
    qrels = {"q": {"a": 3, "b": 0, "c": 1, "d": 2}}
    run = {"q": [("a", 4.0), ("b", 3.0), ("n", 2.0), ("c", 1.0)]}
    discount = {2: 1.584962500721156, 3: 2.0, 4: 2.321928094887362}  # log2(rank + 1)
    ndcg = (3 + 1 / discount[4]) / (3 + 2 / discount[2] + 1 / discount[3])
    scores = per_query(run, qrels, k=3, precision_k=4)["q"]
    assert list(scores) == NAMES
    assert scores == pytest.approx(
        {
            "hit_rate": 1 / 3,
            "precision": 2 / 4,
            "nDCG@10": ndcg,
            "RR@10": 1.0,
            "R@100": 2 / 3,
            "P@100": 2 / 100,
            "Success@1": 1.0,
            "Success@10": 1.0,
            "AP": (1 / 1 + 2 / 4) / 3,
        }
    )


def test_items_are_relevant_from_the_configured_grade() -> None:
    qrels = {"q": {"a": 1, "b": 2}, "none": {"a": 1}}
    run = {"q": [("a", 2.0), ("b", 1.0)], "none": [("a", 1.0)]}
    lenient, strict = per_query(run, qrels, 1, 1), per_query(run, qrels, 1, 1, relevant_from=2)
    assert (lenient["q"]["hit_rate"], lenient["q"]["RR@10"], lenient["q"]["AP"]) == (0.5, 1.0, 1.0)
    assert (strict["q"]["hit_rate"], strict["q"]["RR@10"], strict["q"]["AP"]) == (0.0, 0.5, 0.5)
    assert strict["q"]["nDCG@10"] == lenient["q"]["nDCG@10"] == pytest.approx(0.8597186998521972)
    assert strict["none"]["nDCG@10"] == 1.0
    assert sum(strict["none"].values()) == 1.0  # only nDCG: no item is relevant


def test_equal_cut_offs_and_an_empty_run() -> None:
    run = {"1": [("a", 1.0)]}
    scores = per_query(run, QRELS, k=DEPTH, precision_k=DEPTH)
    assert scores["1"]["hit_rate"] == scores["1"]["R@100"] == 0.25
    assert scores["1"]["precision"] == scores["1"]["P@100"] == 0.01
    assert per_query({}, QRELS, 5, 5) == {query_id: dict.fromkeys(NAMES, 0.0) for query_id in QRELS}
    assert per_query(run, {}, 5, 5) == {}


def graded(seed: int, queries: int = 40) -> tuple[dict[str, dict[str, int]], dict[str, list[tuple[str, float]]]]:
    """Return grades 0 to 3 of few items, and a run up to 150 deep with many ties and some queries without results."""
    draw = random.Random(seed)
    items = [f"i{number}" for number in range(300)]
    qrels = {
        f"q{number}": {item: draw.choice((0, 0, 1, 2, 3)) for item in draw.sample(items, draw.randint(1, 60))}
        for number in range(queries)
    }
    run = {}
    for query_id in draw.sample(list(qrels), queries - 3):
        items_found = draw.sample(items, draw.randint(1, 150))
        run[query_id] = [
            (item, score / 7) for item, score in zip(items_found, decreasing(draw, len(items_found)), strict=True)
        ]
    return qrels, run


def decreasing(draw: random.Random, number: int) -> list[int]:
    return sorted((draw.randint(-9, 30) for _ in range(number)), reverse=True)


@pytest.mark.parametrize("relevant_from", [1, 2])
@pytest.mark.parametrize(("k", "precision_k"), [(30, 10), (5, 3), (100, 1)])
def test_equal_to_trec_eval(tmp_path: Path, k: int, precision_k: int, relevant_from: int) -> None:
    qrels, run = graded(seed=k)
    with write_qrels(qrels, tmp_path / "qrels.txt").open() as lines:
        parsed_qrels = pytrec_eval.parse_qrel(lines)
    with write_run(run, tmp_path / "run.txt", "test").open() as lines:
        parsed_run = pytrec_eval.parse_run(lines)
    first_ten = {
        query_id: dict(sorted(hits.items(), key=lambda hit: -hit[1])[:10]) for query_id, hits in parsed_run.items()
    }
    theirs = {
        "hit_rate": f"recall_{k}",
        "precision": f"P_{precision_k}",
        "nDCG@10": "ndcg_cut_10",
        "R@100": "recall_100",
        "P@100": "P_100",
        "Success@1": "success_1",
        "Success@10": "success_10",
        "AP": "map",
    }
    measures_requested = {*theirs.values(), "recip_rank"}
    whole = pytrec_eval.RelevanceEvaluator(parsed_qrels, measures_requested, relevance_level=relevant_from).evaluate(
        parsed_run
    )
    top = pytrec_eval.RelevanceEvaluator(parsed_qrels, measures_requested, relevance_level=relevant_from).evaluate(
        first_ten
    )
    scores = per_query(run, qrels, k, precision_k, relevant_from)
    assert len(whole) == len(run) == len(qrels) - 3
    for query_id in run:
        expected = {name: whole[query_id][key] for name, key in theirs.items()}
        expected["RR@10"] = top[query_id]["recip_rank"]  # trec_eval has no cut-off for the reciprocal rank
        assert scores[query_id] == pytest.approx(expected, abs=1e-9, rel=0)
    assert all(not any(scores[query_id].values()) for query_id in qrels.keys() - run.keys())
    assert all(sum(scores[query_id][name] for query_id in run) > 0 for name in NAMES)


def test_measures_of_k() -> None:
    assert [str(measure) for measure in measures(30, 5).values()][:2] == ["R@30", "P@5"]


def test_slices_by_category() -> None:
    slices = slices_of({"1": {"category": "negative"}, "2": {"category": "easy"}, "3": {"category": "question"}})
    assert slices == {"all": ["1", "2", "3"], "hard": ["1", "3"], "negative": ["1"], "easy": ["2"], "question": ["3"]}
    groups = summarise(per_query(RUN, QRELS, k=3, precision_k=2), slices)
    first_two = {name: {key: means[key] for key in ("hit_rate", "precision")} for name, means in groups.items()}
    assert list(groups) == list(slices)
    assert first_two["all"] == {"hit_rate": 0.5, "precision": pytest.approx(1 / 3)}
    assert first_two["hard"] == {"hit_rate": 0.25, "precision": 0.25}
    assert first_two["easy"] == {"hit_rate": 1.0, "precision": 0.5}


def test_slices_by_other_columns() -> None:
    rows = {
        "1": {"category": "easy", "slice": "interpolation", "difficulty": "easy"},
        "2": {"category": "knowledge", "slice": "composition", "difficulty": "hard"},
        "3": {"category": None, "slice": None, "difficulty": ""},
    }
    assert slices_of(rows) == {
        "all": ["1", "2", "3"],
        "hard": ["2"],
        "easy": ["1"],
        "slice=interpolation": ["1"],
        "difficulty=easy": ["1"],
        "knowledge": ["2"],
        "slice=composition": ["2"],
        "difficulty=hard": ["2"],
        "uncategorised": ["3"],
    }


def test_no_slice_is_empty_or_has_a_query_twice() -> None:
    assert slices_of({"1": {}}) == {"all": ["1"], "uncategorised": ["1"]}
    own = {"1": {"category": "hard"}, "2": {"category": "all"}, "3": {"category": "negative"}}
    assert slices_of(own) == {"all": ["1", "2", "3"], "hard": ["1", "3"], "negative": ["3"]}
    assert slices_of({}) == {}


def test_queries_without_judgements_do_not_enter_a_mean() -> None:
    scores = {"1": {"AP": 1.0, "RR@10": 0.5}, "2": {"AP": 0.0, "RR@10": 0.25}}
    means = summarise(scores, {"all": ["1", "2", "3"], "set": {"2", "3"}, "unjudged": ["3"]})
    assert means == {"all": {"AP": 0.5, "RR@10": 0.375}, "set": {"AP": 0.0, "RR@10": 0.25}}


def test_unjudged_share() -> None:
    qrels = {"1": {"a": 1, "b": 0}, "2": {"a": 1}, "3": {"a": 1}, "4": {}}
    run = {
        "1": [("a", 3.0), ("b", 2.0), ("x", 1.0)],  # none of two
        "2": [("x", 1.0)],  # one of one
        "3": [],  # no result: ignored
        "4": [("x", 2.0), ("y", 1.0)],  # no judgement at all
        "5": [("a", 1.0)],  # not in the judgements
    }
    assert unjudged_share(run, qrels, 2) == pytest.approx((0 + 1 + 1) / 3)
    assert unjudged_share(run, qrels, 3) == pytest.approx((1 / 3 + 1 + 1) / 3)
    assert unjudged_share({}, qrels, 2) == 0.0


def test_unjudged_share_keeps_the_order_of_the_run() -> None:
    """trec_eval and ir-measures alone would take other items of equal scores."""
    assert unjudged_share({"q": [("b", 1.0), ("a", 1.0), ("c", 1.0)]}, {"q": {"b": 1}}, 1) == 0.0
    assert unjudged_share({"q": [("a", 1.0), ("b", 1.0), ("c", 1.0)]}, {"q": {"b": 1}}, 1) == 1.0


def test_a_column_of_measures_makes_no_slices() -> None:
    rows = {str(i): {"difficulty": i / 7, "slice": i + 1} for i in range(30)}
    assert list(slices_of(rows)) == ["all", "uncategorised"]
    words = {str(i): {"slice": f"s{i}", "difficulty": 1.0 if i else None} for i in range(30)}
    assert len(slices_of(words)) == 2 + 30 + 1
    few = {str(i): {"difficulty": None, "slice": i % 3 + 1} for i in range(30)}
    assert list(slices_of(few)) == ["all", "uncategorised", "slice=1", "slice=2", "slice=3"]
