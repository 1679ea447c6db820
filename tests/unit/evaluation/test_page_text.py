"""Any text in a report gives a complete page: escaped, self-contained, in its own direction."""

import re
import warnings
from pathlib import Path

import pytest

from lrem.evaluation.page import write_page
from tests.report_pages import ARABIC, EVIL, full_report, hostile_report, read_page


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = read_page(full_report(), tmp_path)
    for _, attributes in page.tags:
        for key in {"src", "href", "xlink:href", "srcset", "action", "data"} & set(attributes):
            assert (attributes[key] or "").startswith(("#", "data:")), attributes
    text = (tmp_path / "page.html").read_text()
    assert "://" not in text
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert (policy or "").startswith("default-src 'none'")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = [a["href"] or "" for tag, a in page.tags if tag == "use"]
    assert used
    assert {reference.removeprefix("#") for reference in used} <= set(ids)


def test_everything_is_escaped(tmp_path: Path) -> None:
    page = read_page(hostile_report(EVIL), tmp_path)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in page.tags]
    assert {key for _, attributes in page.tags for key in attributes if key.startswith("on")} == set()
    assert EVIL + "something warm but no wool" in page.text
    assert EVIL + "down jacket" in page.text
    assert page.row("Settings", "model.name")["value"] == EVIL + "base"


@pytest.mark.parametrize("text", ["long " * 1000, "x" * 5000, ARABIC, "\x00\x1b\ud800", "$\\frac{$ 毛衣 ", "_a"])
def test_any_text_gives_a_complete_page(text: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = read_page(hostile_report(text), tmp_path)
    longest = max(
        max(map(len, row)) for name, rows in page.tables.items() for row in rows if name not in ("Settings", "Versions")
    )
    assert longest <= 100 or len(text) < 1000
    [title] = [line for line in page.text.splitlines() if line.strip()][:1]
    assert len(title) <= 240


def test_right_to_left_text_keeps_its_own_direction(tmp_path: Path) -> None:
    write_page(hostile_report(ARABIC), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert f"<bdi>{ARABIC}wool coat 2</bdi>" in text
    assert f'<h1 dir="auto">{ARABIC}Product search, winter</h1>' in text
