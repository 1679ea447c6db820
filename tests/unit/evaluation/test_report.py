"""The report's terminal table and its plot."""

from pathlib import Path

from rich.console import Console

from lrem.evaluation.overrides import OVERRIDES
from lrem.evaluation.report import CATEGORIES, plot, score_table


def test_table_and_plot(tmp_path: Path) -> None:
    row = {category: {"hit_rate": 0.254, "precision": 0.5} for category in CATEGORIES}
    report = {
        "seed": 3,
        "k": {"hit_rate": 30, "precision": 10},
        "systems": {"bm25": row, "lrem": row},
        "overrides": {name: {"all": row["all"]} for name in OVERRIDES},
    }
    console = Console(width=160, record=True)
    console.print(score_table("systems", report["systems"], report["k"]))
    text = console.export_text()
    assert "HitRate@30 / Precision@10" in text
    assert "25.4/50.0" in text
    assert plot(report, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
