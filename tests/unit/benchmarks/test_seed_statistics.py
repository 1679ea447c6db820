"""From scores to the tables of docs/results.md, against values by hand."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.seed_statistics import MARK, gains, group_means, members, over_seeds, write_page

QUERIES: dict[str, dict[str, Any]] = {
    "a": {"category": "question", "slice": "interpolation", "explained": True},
    "b": {"category": "knowledge", "slice": "interpolation", "explained": True},
    "c": {"category": "knowledge", "slice": "interpolation", "explained": True},
    "d": {"category": "knowledge", "slice": "composition", "explained": True},
    "e": {"category": "easy", "slice": "interpolation", "explained": True},
}
SCORES = {"a": (1.0, 0.4), "b": (0.0, 0.2), "c": (0.5, 0.0), "d": (0.5, 0.9), "e": (0.9, 0.9)}


def test_hard_is_a_macro_mean_and_hard_micro_a_mean_over_queries() -> None:
    means = group_means(SCORES, QUERIES)
    assert means["knowledge"] == (0.25, pytest.approx(0.1))
    assert means["hard"] == (pytest.approx((1 + 0.25 + 0.5) / 3), pytest.approx((0.4 + 0.1 + 0.9) / 3))
    assert means["hard, micro"] == (0.5, pytest.approx(1.5 / 4))
    assert means["easy"] == (0.9, 0.9)
    assert "explained" not in means  # without unexplained queries this group would be all queries


def test_unexplained_queries_are_a_group() -> None:
    means = group_means(SCORES, QUERIES | {"d": QUERIES["d"] | {"explained": False}})
    assert means["unexplained"] == (0.5, 0.9)
    assert means["explained"] == (0.5, pytest.approx(0.2))
    assert len(members(QUERIES)["hard, micro"]) == 4


def test_intervals_and_gains_are_over_seeds() -> None:
    ours = [{"hard": (0.5, 0.6)}, {"hard": (0.7, 0.6)}]
    theirs = [{"hard": (0.4, 0.6)}, {"hard": (0.5, 0.0)}]
    hit = over_seeds(ours)["hard"]["hit_rate"]
    assert hit["mean"] == pytest.approx(0.6)
    assert hit["half"] == pytest.approx(12.706 * 0.1, rel=1e-3)  # t of one degree of freedom, times s / sqrt(2)
    assert hit["seeds"] == [0.5, 0.7]
    gained = gains(ours[:1], theirs[:1])["hard"]
    assert (gained["hit_rate"]["mean"], gained["precision"]["mean"]) == (pytest.approx(0.25), 0)
    assert gains(ours, theirs) == {}  # no gain over a score of 0


def test_the_page_keeps_its_text_and_replaces_its_tables(tmp_path: Path) -> None:
    rows = {"BM25": over_seeds([{"hard": (0.25, 0.5)}]), "lrem": over_seeds([{"hard": (0.5, 0.75)}])}
    names = ("greedy", "sampled", "overrides", "lengths", "gains")
    report = dict.fromkeys(names, rows) | {"k": {"k": 30, "precision_k": 10}, "seeds": [0]}
    page = tmp_path / "results.md"
    page.write_text("# Results\n\nWords.\n\n" + MARK + "\n\nold tables\n")
    write_page(report, page)
    text = page.read_text()
    assert text.startswith("# Results\n\nWords.\n\n" + MARK)
    assert "old tables" not in text
    assert "| BM25 | 25.0 / 50.0 |" in text
    assert "| LREM | 50.0 / 75.0 |" in text
