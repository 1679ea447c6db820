"""Overrides, table and plot."""

from pathlib import Path

import pytest
from rich.console import Console

from lrem.evaluation.overrides import OVERRIDES, override
from lrem.evaluation.report import CATEGORIES, plot, table


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
