"""Metrics against hand counts, overrides, table and plot."""

from pathlib import Path

import pytest
from rich.console import Console

from lrem.evaluation.metrics import per_query, summarise
from lrem.evaluation.overrides import OVERRIDES, override
from lrem.evaluation.report import CATEGORIES, plot, table

QRELS = {"1": {"a": 1, "b": 1, "c": 1, "d": 1}, "2": {"x": 1, "y": 0}, "3": {"z": 1}}
RUN = {"1": [("a", 0.9), ("n", 0.9), ("b", 0.9), ("m", 0.1)], "2": [("y", 1.0), ("x", 0.5)]}


def test_hit_rate_is_a_recall_and_precision_is_of_k() -> None:
    scores = per_query(RUN, QRELS, k=3, precision_k=2)
    assert scores == {"1": (0.5, 0.5), "2": (1.0, 0.5), "3": (0.0, 0.0)}


def test_ties_keep_the_runs_order() -> None:
    """All three scores of query 1 are equal; trec_eval alone would reorder them by id."""
    assert per_query(RUN, QRELS, k=1, precision_k=1)["1"] == (0.25, 1.0)
    assert per_query({"1": [("n", 0.9), ("a", 0.9)]}, QRELS, k=1, precision_k=1)["1"] == (0.0, 0.0)


def test_groups() -> None:
    groups = summarise(
        {"1": (0.5, 0.5), "2": (1.0, 0.5), "3": (0.0, 0.0)}, {"1": "negative", "2": "easy", "3": "question"}
    )
    assert groups["all"] == {"hit_rate": 0.5, "precision": pytest.approx(1 / 3)}
    assert groups["hard"] == {"hit_rate": 0.25, "precision": 0.25}
    assert groups["easy"] == {"hit_rate": 1.0, "precision": 0.5}


def test_overrides() -> None:
    queries, own, words = ["red coat", "tea"], ["wool, warm coat", ""], ["oak", "iron"]
    assert override("own", queries, own, words, 0) == own
    assert override("empty", queries, own, words, 0) == ["", ""]
    assert override("query", queries, own, words, 0) == queries
    drawn = override("random", queries, own, words, 3)
    assert [len(text.split()) for text in drawn] == [3, 1]
    assert set(" ".join(drawn).split()) <= set(words)
    assert drawn == override("random", queries, own, words, 3)
    with pytest.raises(ValueError, match="own, empty, random, query"):
        override("gold", queries, own, words, 0)


def test_table_and_plot(tmp_path: Path) -> None:
    row = {category: {"hit_rate": 0.254, "precision": 0.5} for category in CATEGORIES}
    report = {
        "seed": 3,
        "k": {"hit_rate": 30, "precision": 10},
        "systems": {"bm25": row, "lrem": row},
        "overrides": {name: {"all": row["all"]} for name in OVERRIDES},
    }
    console = Console(width=160, record=True)
    console.print(table("systems", report["systems"], report["k"]))
    text = console.export_text()
    assert "HitRate@30 / Precision@10" in text
    assert "25.4/50.0" in text
    assert plot(report, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
