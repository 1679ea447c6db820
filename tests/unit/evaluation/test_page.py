"""The report page read back as HTML: the right numbers in the right cells, and missing sections left out."""

import re
from pathlib import Path

import pytest

from lrem.errors import DataError
from lrem.evaluation.conclusions import scope
from lrem.evaluation.page import write_page
from lrem.evaluation.report_view import view_of
from tests.report_pages import full_report, read_page


def test_numbers_are_in_the_right_cells(tmp_path: Path) -> None:
    page = read_page(full_report(), tmp_path)
    main = page.row("All queries, percent", "LREM + RL")
    assert main["nDCG@10"] == "*61.2|58.7 – 63.7"
    assert main["MRR@10"] == "*59.5|57.0 – 62.0"
    assert page.row("All queries, percent", "BM25")["Recall@100"] == "39.8|37.3 – 42.3"
    assert list(main) == ["system", "nDCG@10", "MRR@10", "Recall@100", "HitRate@30"]
    groups = page.row("nDCG@10 by group of queries, percent", "direct")
    assert list(groups) == ["system", "all (1,200)", "question (300)", "negative (300)", "easy (600)", "hard (600)"]
    assert groups["negative (300)"] == "61.0|58.5 – 63.5"
    assert page.row("Cost", "LREM + RL") == {
        "system": "LREM + RL", "ms per query": "181.0", "queries with reasoning, %": "80.0", "tokens per query": "9.1",
    }  # fmt: skip
    assert page.row("Cost", "BM25")["tokens per query"] == "–"
    assert page.row("Share of the top items without a judgement, percent", "LREM + RL") == {
        "system": "LREM + RL", "top 10": "12.1", "top 30": "–",
    }  # fmt: skip
    assert page.row("Agreement with the judgements", "kappa")["value"] == "0.612"
    assert page.row("Precision as judged, percent", "LREM + RL")["precision"] == "70.7"
    assert page.row("Settings", "model.dims.out")["value"] == "512"
    assert page.row("Versions", "torch")["value"] == "2.9.0"


def test_comparisons_state_their_result(tmp_path: Path) -> None:
    page = read_page(full_report(), tmp_path)
    headings, first, _ = page.tables["nDCG@10, all queries"]
    assert dict(zip(headings, first, strict=True)) == {
        "first": "LREM + RL",
        "second": "direct",
        "queries": "all",
        "measure": "nDCG@10",
        "difference, points": "+6.2|+4.1 to +8.3",
        "p": "< 0.001",
        "p (Holm)": "< 0.001",
        "what it shows": "LREM + RL is better",
    }
    _, other = page.tables["Other measures and groups"]
    assert other == ["BM25", "direct", "hard", "MRR@10", "−1.0|−3.0 to +1.0", "0.040", "0.080", "not significant"]


def test_each_probe_has_a_table(tmp_path: Path) -> None:
    report = full_report()
    for key, heading in {"overrides": "reasoning", "lengths": "tokens", "fusion": "reasonings"}.items():
        page = read_page({name: report[name] for name in ("systems", "slices", "counts", key)}, tmp_path)
        table = page.tables[f"nDCG@10 by {heading}, percent"]
        assert [row[0] for row in table[1:]] == list(report[key])
        assert table[2][1:] == [f"{100 * cell['nDCG@10']:.1f}" for cell in list(report[key].values())[1].values()]
    page = read_page({name: report[name] for name in ("systems", "counts", "routing")}, tmp_path)
    assert page.row("nDCG@10 by mode, percent", "always") == {
        "mode": "always", "queries with reasoning, %": "100.0", "ms per query": "20.2",
        "all": "61.0", "question": "64.0", "negative": "67.0", "easy": "70.0", "hard": "73.0",
    }  # fmt: skip


def test_slices_by_difficulty_come_with_a_warning(tmp_path: Path) -> None:
    report = full_report()
    assert "unfair to it" not in read_page(report, tmp_path).text
    report["slices"]["difficulty=hard"] = 300
    assert "so the comparison is unfair to it" in read_page(report, tmp_path).text


def test_a_probe_without_the_primary_measure_shows_another(tmp_path: Path) -> None:
    page = read_page(full_report() | {"overrides": {"own": {"all": {"hit_rate": 0.123}}}}, tmp_path)
    assert page.row("HitRate@30 by reasoning, percent", "own") == {
        "reasoning": "own",
        "all (1,200)": "12.3",
    }


def test_gallery_marks_items_brought_in_and_pushed_out(tmp_path: Path) -> None:
    text = write_page(full_report(), tmp_path / "page.html").read_text()
    without, with_reasoning = text[text.index("<h4>Without") :].split("<h4>With reasoning")

    def shown(part: str) -> list[tuple[str, list[str]]]:
        rows = re.findall(r"<li><span><bdi>(.*?)</bdi>(.*?)</li>", part, flags=re.DOTALL)
        return [(title, re.findall(r'class="badge[^>]*>(.*?)<', rest)) for title, rest in rows]

    assert shown(without) == [
        ("wool coat 0", ["pushed out", "not judged"]),
        ("wool coat 1", ["pushed out", "grade 1"]),
        ("wool coat 2", ["grade 2"]),
        ("wool coat 3", ["grade 0"]),
    ]
    assert shown(with_reasoning)[1:3] == [("wool coat 3", ["grade 0"]), ("wool coat 4", ["brought in", "grade 1"])]
    assert "negative · q7 · +43.1 points" in text
    assert '<li dir="auto">down jacket</li><li dir="auto">fleece</li>' in text


def test_a_minimal_report(tmp_path: Path) -> None:
    report = {"systems": {"a": {"all": {"hit_rate": 0.5}}, "b": {"hard": {"hit_rate": 0.25}}}, "counts": {"queries": 3}}
    page = read_page(report, tmp_path)
    assert scope(view_of(report)) == "Measured: 2 systems on 3 queries."
    assert page.tables == {
        "All queries, percent": [["system", "hit_rate"], ["a", "*50.0"], ["b", "–"]],
        "hit_rate by group of queries, percent": [["system", "all", "hard"], ["a", "*50.0", "–"], ["b", "–", "*25.0"]],
    }
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", (tmp_path / "page.html").read_text())
    assert headings == ["Summary", "Systems", "Groups of queries"]
    named = read_page(report | {"k": {"hit_rate": 30}}, tmp_path)
    assert "HitRate@30" in named.row("All queries, percent", "a")


def test_every_other_section_may_be_empty_or_absent(tmp_path: Path) -> None:
    report = full_report()
    systems = {"lrem": {"all": {"hit_rate": 0.5, "nDCG@10": 0.25}, "hard": {"hit_rate": 0.125}}}
    small = {"systems": systems, "counts": report["counts"]}
    others = sorted(set(report) - set(small))
    absent = read_page(small, tmp_path).text
    assert read_page(small | {key: type(report[key])() for key in others}, tmp_path).text == absent
    for key in others:
        assert read_page(small | {key: report[key]}, tmp_path).text != absent, key


def test_a_report_without_systems_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no systems"):
        write_page({"systems": {}, "counts": {}}, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_previous_page(tmp_path: Path) -> None:
    path = write_page(full_report(), tmp_path / "page.html")
    before = path.read_bytes()
    broken = full_report()
    del broken["gallery"][0]["query"]
    with pytest.raises(Exception, match="query"):
        write_page(broken, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
