"""A report with every section, and a reader of the page that is made from it."""

import copy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lrem.evaluation.page import write_page

VOID = {"meta", "link", "input", "br", "hr", "img"}
SLICES = {"all": 1200, "question": 300, "negative": 300, "easy": 600, "hard": 600}
MEASURES = {"nDCG@10": "nDCG@10", "RR@10": "MRR@10", "R@100": "Recall@100", "hit_rate": "HitRate@30"}
NAMES = {"bm25": "BM25", "direct": "direct", "lrem": "LREM + RL"}
NDCG = {"bm25": 0.4321, "direct": 0.5502, "lrem": 0.6124}
EVIL = """<script>alert("x")</script>'"><img src=http://evil.example/x onerror=alert(1)>"""
ARABIC = "معطف صوف دافئ للشتاء"


def scores_around(centre: float) -> dict[str, dict[str, float]]:
    """Return scores by slice and measure that differ slightly, so that no two cells of a table are equal."""
    return {
        part: {key: round(centre + 0.03 * i - 0.017 * j, 4) for j, key in enumerate(MEASURES)}
        for i, part in enumerate(SLICES)
    }


def full_report() -> dict[str, Any]:
    """Return a report with every section."""
    systems = {name: scores_around(centre) for name, centre in NDCG.items()}
    items = [{"item_id": f"i{n}", "title": f"wool coat {n}", "grade": n % 3 if n else None} for n in range(6)]
    return {
        "title": "Product search, winter",
        "made": "2026-02-03T14:05:00+00:00",
        "commit": "0123456789abcdef0123",
        "k": {"hit_rate": 30, "precision": 10},
        "measures": MEASURES | {"P@1": "measured nowhere"},
        "primary": "nDCG@10",
        "systems": systems,
        "names": NAMES,
        "slices": dict(SLICES),
        "intervals": {
            name: {part: {key: [v - 0.025, v + 0.025] for key, v in row.items()} for part, row in systems[name].items()}
            for name in systems
        },
        "unjudged": {"bm25": {"10": 0.05, "30": 0.15}, "lrem": {"10": 0.121}},
        "comparisons": [
            comparison("lrem", "direct", 0.0622, 0.041, 0.083, 0.0001, 0.0003),
            comparison("lrem", "bm25", 0.1803, 0.15, 0.21, 0.0001, 0.0003),
            comparison("bm25", "direct", -0.0101, -0.03, 0.01, 0.04, 0.08) | {"slice": "hard", "measure": "RR@10"},
        ],
        "cost": {
            "bm25": {"ms_per_query": 0.8},
            "direct": {"ms_per_query": 12.3, "thinks": 0.0, "tokens": 0.0},
            "lrem": {"ms_per_query": 181.04, "thinks": 0.8, "tokens": 9.1},
        },
        "overrides": {kind: scores_around(v) for kind, v in (("own", 0.6), ("empty", 0.5), ("random", 0.4))},
        "routing": {
            "never": {"thinks": 0.0, "ms_per_query": 3.1, "scores": scores_around(0.55)},
            "always": {"thinks": 1.0, "ms_per_query": 20.2, "scores": scores_around(0.61)},
        },
        "lengths": {"4": scores_around(0.58), "8": scores_around(0.6), "16": scores_around(0.61)},
        "fusion": {"1": scores_around(0.61), "3": scores_around(0.615)},
        "judge": {"name": "a 7B judge", "agreement": {"kappa": 0.61234, "pairs": 400}, "precision": {"lrem": 0.707}},
        "gallery": [
            {
                "query_id": "q7",
                "query": "something warm but no wool",
                "category": "negative",
                "reasoning": "down jacket, fleece",
                "gain": 0.431,
                "without": items[:4],
                "with": items[2:],
            }
        ],
        "counts": {"queries": 1200, "items": 50_000, "judgements": 24_000},
        "settings": {"model": {"name": "base", "dims": {"out": 512}}, "seed": 7},
        "versions": {"torch": "2.9.0"},
    }


def comparison(a: str, b: str, difference: float, low: float, high: float, p: float, p_holm: float) -> dict[str, Any]:
    """Return one paired test over all queries."""
    return {"a": a, "b": b, "slice": "all", "measure": "nDCG@10"} | {
        "difference": difference, "low": low, "high": high, "p": p, "p_holm": p_holm,
    }  # fmt: skip


class ParsedPage(HTMLParser):
    """Reads a page; fails if an end tag does not close the element that was opened last."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}  # caption → rows, the first of them the headings
        self.cells: list[tuple[str, dict[str, str | None], str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "caption":
            self.tables[""] = []
            self.caption = ""
        if tag == "tr":
            self.tables[self.caption].append([])
        if tag in ("td", "th"):
            self.tables[self.caption][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1] == tag, f"</{tag}> at {self.getpos()} closes {self.open[-1]}"
        self.open.pop()
        if tag == "caption":
            assert self.caption not in self.tables, f"two tables are called {self.caption}"
            self.tables[self.caption] = self.tables.pop("")

    def handle_data(self, data: str) -> None:
        inside = set(self.open)
        if not inside & {"script", "style"}:
            self.text += data
        if "caption" in inside:
            self.caption += data
        elif inside & {"td", "th"}:
            mark = "*" if self.open[-1] == "strong" else "|" if self.open[-1] == "small" else ""
            self.tables[self.caption][-1][-1] += mark + data.strip()

    def row(self, caption: str, name: str) -> dict[str, str]:
        """Return heading → cell text of the row `name`; * marks bold text, | small print."""
        headings, *rows = self.tables[caption]
        [cells] = [row for row in rows if row[0] == name]
        return dict(zip(headings, cells, strict=True))


def read_page(report: dict[str, Any], folder: Path) -> ParsedPage:
    """Write the page of a report and parse it."""
    path = write_page(report, folder / "page.html")
    assert path == folder / "page.html"
    assert [file.name for file in folder.iterdir()] == ["page.html"]
    return ParsedPage(path.read_text(encoding="utf-8"))


def with_prefix(value: Any, text: str) -> Any:
    """Return a part of a report with `text` before every string."""
    if isinstance(value, dict):
        return {key: with_prefix(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_prefix(inner, text) for inner in value]
    return text + value if isinstance(value, str) else value


def hostile_report(text: str) -> dict[str, Any]:
    """Return a report with `text` wherever a person or a data set could put it, also in names of slices and systems."""
    report = full_report()
    for key in ("title", "commit", "made", "names", "gallery", "judge", "settings", "versions"):
        report[key] = with_prefix(report[key], text)
    report["measures"] = {key: name + text for key, name in MEASURES.items()}
    report["overrides"] = {text + kind: scores for kind, scores in report["overrides"].items()}
    report["systems"][text] = copy.deepcopy(report["systems"]["bm25"])
    for row in report["systems"].values():
        row[text] = row.pop("easy")
    report["slices"][text] = report["slices"].pop("easy")
    report["cost"][text] = {"ms_per_query": 3.0}
    return report
