"""The page of an evaluation, read back as HTML: right numbers in right cells, honest sentences, nothing unescaped."""

import copy
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page as Tab
from playwright.sync_api import sync_playwright

from lrem.errors import DataError
from lrem.evaluation.charts import bars, curves, scatter
from lrem.evaluation.conclusions import headline, scope
from lrem.evaluation.page import write_page
from lrem.evaluation.report_view import view_of

VOID = {"meta", "link", "input", "br", "hr", "img"}
SLICES = {"all": 1200, "question": 300, "negative": 300, "easy": 600, "hard": 600}
MEASURES = {"nDCG@10": "nDCG@10", "RR@10": "MRR@10", "R@100": "Recall@100", "hit_rate": "HitRate@30"}
NAMES = {"bm25": "BM25", "direct": "direct", "lrem": "LREM + RL"}
NDCG = {"bm25": 0.4321, "direct": 0.5502, "lrem": 0.6124}
EVIL = """<script>alert("x")</script>'"><img src=http://evil.example/x onerror=alert(1)>"""
ARABIC = "معطف صوف دافئ للشتاء"


def scores_around(centre: float) -> dict[str, dict[str, float]]:
    """Every slice and measure, each a little off, so that no two cells of a table are the same."""
    return {
        part: {key: round(centre + 0.03 * i - 0.017 * j, 4) for j, key in enumerate(MEASURES)}
        for i, part in enumerate(SLICES)
    }


def full_report() -> dict[str, Any]:
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
            compared("lrem", "direct", 0.0622, 0.041, 0.083, 0.0001, 0.0003),
            compared("lrem", "bm25", 0.1803, 0.15, 0.21, 0.0001, 0.0003),
            compared("bm25", "direct", -0.0101, -0.03, 0.01, 0.04, 0.08) | {"slice": "hard", "measure": "RR@10"},
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


def compared(a: str, b: str, difference: float, low: float, high: float, p: float, p_holm: float) -> dict[str, Any]:
    return {"a": a, "b": b, "slice": "all", "measure": "nDCG@10"} | {
        "difference": difference, "low": low, "high": high, "p": p, "p_holm": p_holm,
    }  # fmt: skip


class Page(HTMLParser):
    """Reads a page; fails where an end tag does not close the element that is open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}  # caption → rows, the first of them the head
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
        """Heading → what stands below it, in the row that begins with `name`; * marks bold, | what is small."""
        head, *rows = self.tables[caption]
        [found] = [row for row in rows if row[0] == name]
        return dict(zip(head, found, strict=True))


def read(report: dict[str, Any], folder: Path) -> Page:
    path = write_page(report, folder / "page.html")
    assert path == folder / "page.html"
    assert [file.name for file in folder.iterdir()] == ["page.html"]
    return Page(path.read_text(encoding="utf-8"))


def sentence(**changed: Any) -> str:
    return headline(view_of(full_report() | changed))


def test_numbers_stand_in_their_cells(tmp_path: Path) -> None:
    page = read(full_report(), tmp_path)
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


def test_comparisons_are_put_into_words(tmp_path: Path) -> None:
    page = read(full_report(), tmp_path)
    head, first, _ = page.tables["nDCG@10, all queries"]
    assert dict(zip(head, first, strict=True)) == {
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


def test_probes(tmp_path: Path) -> None:
    report = full_report()
    for key, head in {"overrides": "reasoning", "lengths": "tokens", "fusion": "reasonings"}.items():
        page = read({name: report[name] for name in ("systems", "slices", "counts", key)}, tmp_path)
        table = page.tables[f"nDCG@10 by {head}, percent"]
        assert [row[0] for row in table[1:]] == list(report[key])
        assert table[2][1:] == [f"{100 * cell['nDCG@10']:.1f}" for cell in list(report[key].values())[1].values()]
    page = read({name: report[name] for name in ("systems", "counts", "routing")}, tmp_path)
    assert page.row("nDCG@10 by mode, percent", "always") == {
        "mode": "always", "queries with reasoning, %": "100.0", "ms per query": "20.2",
        "all": "61.0", "question": "64.0", "negative": "67.0", "easy": "70.0", "hard": "73.0",
    }  # fmt: skip


def test_a_choice_by_difficulty_is_said_to_be_unfair(tmp_path: Path) -> None:
    report = full_report()
    assert "unfair to it" not in read(report, tmp_path).text
    report["slices"]["difficulty=hard"] = 300
    assert "so the comparison is unfair to it" in read(report, tmp_path).text


def test_a_probe_without_the_primary_measure_shows_one_that_it_has(tmp_path: Path) -> None:
    page = read(full_report() | {"overrides": {"own": {"all": {"hit_rate": 0.123}}}}, tmp_path)
    assert page.row("HitRate@30 by reasoning, percent", "own") == {
        "reasoning": "own",
        "all (1,200)": "12.3",
    }


def test_gallery_marks_what_came_and_went(tmp_path: Path) -> None:
    text = write_page(full_report(), tmp_path / "page.html").read_text()
    without, having = text[text.index("<h4>Without") :].split("<h4>With reasoning")

    def shown(part: str) -> list[tuple[str, list[str]]]:
        rows = re.findall(r"<li><span><bdi>(.*?)</bdi>(.*?)</li>", part, flags=re.DOTALL)
        return [(title, re.findall(r'class="badge[^>]*>(.*?)<', rest)) for title, rest in rows]

    assert shown(without) == [
        ("wool coat 0", ["pushed out", "not judged"]),
        ("wool coat 1", ["pushed out", "grade 1"]),
        ("wool coat 2", ["grade 2"]),
        ("wool coat 3", ["grade 0"]),
    ]
    assert shown(having)[1:3] == [("wool coat 3", ["grade 0"]), ("wool coat 4", ["brought in", "grade 1"])]
    assert "negative · q7 · +43.1 points" in text
    assert '<li dir="auto">down jacket</li><li dir="auto">fleece</li>' in text


def test_the_sentence_of_a_significant_lead() -> None:
    assert sentence() == (
        "LREM + RL has the highest nDCG@10, 61.2 % (95 % interval 58.7 to 63.7), before direct with 55.0 % "
        "(95 % interval 52.5 to 57.5): the difference of 6.2 points (95 % interval 4.1 to 8.3) is significant "
        "(p < 0.001 after Holm's correction)."
    )


def test_the_sentence_turns_a_comparison_that_is_given_the_other_way_round() -> None:
    said = sentence(comparisons=[compared("direct", "lrem", -0.0622, -0.083, -0.041, 0.01, 0.02)])
    assert "the difference of 6.2 points (95 % interval 4.1 to 8.3) is significant (p = 0.020 after" in said


def test_the_sentence_of_a_lead_that_is_not_significant() -> None:
    said = sentence(comparisons=[compared("lrem", "direct", 0.0622, -0.01, 0.14, 0.04, 0.12)])
    assert said.endswith(
        "the difference of 6.2 points (95 % interval −1.0 to 14.0) is not significant (p = 0.120 after Holm's "
        "correction), so the two cannot be told apart here."
    )


def test_the_sentence_without_a_test() -> None:
    overlapping = full_report()["intervals"]
    overlapping["direct"]["all"]["nDCG@10"] = [0.5, 0.6]
    said = sentence(comparisons=[], intervals=overlapping)
    assert said.endswith("their intervals overlap and no paired test is given, so which of them is better stays open.")
    assert sentence(comparisons=[]).endswith("their intervals do not overlap; no paired test is given.")
    assert sentence(comparisons=[], intervals={}) == (
        "LREM + RL has the highest nDCG@10, 61.2 %, before direct with 55.0 %: without a test and intervals, the lead "
        "of 6.2 points may be chance."
    )


def test_the_sentence_where_the_evidence_is_mixed() -> None:
    overlapping = full_report()["intervals"]
    overlapping["direct"]["all"]["nDCG@10"] = [0.5, 0.6]
    assert sentence(intervals=overlapping).endswith("correction), although their own intervals overlap.")
    said = sentence(comparisons=[compared("lrem", "direct", 0.0622, -0.001, 0.12, 0.01, 0.03)])
    assert "is unclear: its interval includes zero, which the test (p = 0.030 after Holm's correction) rejects" in said
    unknown = compared("lrem", "direct", 0.0622, 0.041, 0.083, float("nan"), float("nan"))
    assert sentence(comparisons=[unknown]).endswith("(95 % interval 4.1 to 8.3) is significant.")


def test_the_sentence_of_one_system_of_a_tie_and_of_none() -> None:
    systems = full_report()["systems"]
    assert sentence(systems={"lrem": systems["lrem"]}) == (
        "LREM + RL reaches 61.2 % (95 % interval 58.7 to 63.7) on nDCG@10; there is no second system to compare it "
        "with."
    )
    assert sentence(systems={"direct": systems["lrem"], "lrem": systems["lrem"]}) == (
        "direct and LREM + RL are level at the top: both reach 61.2 % on nDCG@10."
    )
    nothing = {"lrem": {"all": {"nDCG@10": float("nan")}}}
    assert sentence(systems=nothing) == "No system has a score on nDCG@10 over all queries, so none is ahead."


def test_a_minimal_report(tmp_path: Path) -> None:
    report = {"systems": {"a": {"all": {"hit_rate": 0.5}}, "b": {"hard": {"hit_rate": 0.25}}}, "counts": {"queries": 3}}
    page = read(report, tmp_path)
    assert scope(view_of(report)) == "Measured: 2 systems on 3 queries."
    assert page.tables == {
        "All queries, percent": [["system", "hit_rate"], ["a", "*50.0"], ["b", "–"]],
        "hit_rate by group of queries, percent": [["system", "all", "hard"], ["a", "*50.0", "–"], ["b", "–", "*25.0"]],
    }
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", (tmp_path / "page.html").read_text())
    assert headings == ["Summary", "Systems", "Groups of queries"]
    named = read(report | {"k": {"hit_rate": 30}}, tmp_path)
    assert "HitRate@30" in named.row("All queries, percent", "a")


def test_every_other_part_may_be_empty_or_absent(tmp_path: Path) -> None:
    report = full_report()
    systems = {"lrem": {"all": {"hit_rate": 0.5, "nDCG@10": 0.25}, "hard": {"hit_rate": 0.125}}}
    small = {"systems": systems, "counts": report["counts"]}
    absent = read(small, tmp_path).text
    for key in sorted(set(report) - set(small)):
        assert read(small | {key: type(report[key])()}, tmp_path).text == absent, key
        assert read(small | {key: report[key]}, tmp_path).text != absent, key


def test_a_report_without_systems_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no systems"):
        write_page({"systems": {}, "counts": {}}, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_older_page(tmp_path: Path) -> None:
    path = write_page(full_report(), tmp_path / "page.html")
    before = path.read_bytes()
    broken = full_report()
    del broken["gallery"][0]["query"]
    with pytest.raises(Exception, match="query"):
        write_page(broken, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = read(full_report(), tmp_path)
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
    assert {one.removeprefix("#") for one in used} <= set(ids)


def poisoned(value: Any, text: str) -> Any:
    """The report with `text` in place of, or before, every string that is shown."""
    if isinstance(value, dict):
        return {key: poisoned(one, text) for key, one in value.items()}
    if isinstance(value, list):
        return [poisoned(one, text) for one in value]
    return text + value if isinstance(value, str) else value


def hostile_report(text: str) -> dict[str, Any]:
    """`text` wherever a person or a data set could have put it, keys of slices, measures and systems too."""
    report = full_report()
    for key in ("title", "commit", "made", "names", "gallery", "judge", "settings", "versions"):
        report[key] = poisoned(report[key], text)
    report["measures"] = {key: name + text for key, name in MEASURES.items()}
    report["overrides"] = {text + kind: scores for kind, scores in report["overrides"].items()}
    report["systems"][text] = copy.deepcopy(report["systems"]["bm25"])
    for row in report["systems"].values():
        row[text] = row.pop("easy")
    report["slices"][text] = report["slices"].pop("easy")
    report["cost"][text] = {"ms_per_query": 3.0}
    return report


def test_everything_is_escaped(tmp_path: Path) -> None:
    page = read(hostile_report(EVIL), tmp_path)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in page.tags]
    assert {key for _, attributes in page.tags for key in attributes if key.startswith("on")} == set()
    assert EVIL + "something warm but no wool" in page.text
    assert EVIL + "down jacket" in page.text
    assert page.row("Settings", "model.name")["value"] == EVIL + "base"


@pytest.mark.parametrize("text", ["long " * 1000, "x" * 5000, ARABIC, "\x00\x1b\ud800", "$\\frac{$ 毛衣 ", "_a"])
def test_any_text_makes_a_whole_page(text: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = read(hostile_report(text), tmp_path)
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


def test_charts_draw_what_they_are_given() -> None:
    """Heights and places are read back from the drawing."""
    drawn = bars(["all", "<b>"], [[0.2, None], [0.4, 0.1]], [[(0.1, 0.3), None], [None, None]], "P, %", "one")
    paths = re.findall(r'<path d="M ([^"]*?)z " clip-path="url\(#one-\w+\)" style="fill: var\(--s(\d)\)', drawn)
    found = []
    for path, series in paths:
        heights = [float(y) for y in re.findall(r"[-\d.]+ ([-\d.]+)", path)]
        found.append((series, max(heights) - min(heights)))
    assert [series for series, _ in found] == ["1", "2", "2"]
    assert found[1][1] / found[0][1] == pytest.approx(2, rel=1e-3)
    assert found[0][1] / found[2][1] == pytest.approx(2, rel=1e-3)
    assert "&lt;b&gt;" in drawn
    points = scatter({0: (1.0, 0.1), 2: (100.0, 0.3)}, "ms", "P, %", "two")
    assert re.findall(r"<use [^>]*fill: var\(--s(\d)\)", points) == ["1", "3"]
    lines = curves([4, 8, 16], {"all": [0.1, None, 0.3]}, "tokens", "P, %", "three")
    assert re.findall(r">(4|8|16|all)<", lines) == ["4", "8", "16", "all"]


@pytest.fixture
def tab() -> Iterator[Tab]:
    """A Chromium on a telephone's width, in the dark; the page in it must raise no error and load nothing."""
    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not found:
        message = "the page is tested in Chromium: install chromium (Debian, Ubuntu: apt-get install chromium)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root, as in most containers.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        with playwright.chromium.launch(executable_path=found[0], args=args) as chromium:
            page = chromium.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
            page.set_default_timeout(30_000)
            wrong: list[str] = []
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("console", lambda message: wrong.append(message.text))  # a breach of the page's own policy too
            loaded: list[str] = []
            page.on("request", lambda request: loaded.append(request.url))
            yield page
            assert wrong == []
            assert [url for url in loaded if not url.startswith(("file:", "data:"))] == []


def test_in_a_browser_it_sorts_and_shows_the_chosen_measure(tab: Tab, tmp_path: Path) -> None:
    report = full_report()
    del report["systems"]["direct"]["all"]["RR@10"]
    tab.goto(write_page(report, tmp_path / "page.html").as_uri())
    main = tab.locator("table").first
    button = main.get_by_role("button", name="MRR@10")
    assert main.locator("tbody th").all_inner_texts() == ["BM25", "direct", "LREM + RL"]
    button.click()
    assert main.locator("tbody th").all_inner_texts() == ["LREM + RL", "BM25", "direct"]  # what is missing stays last
    button.click()
    assert main.locator("tbody th").all_inner_texts() == ["BM25", "LREM + RL", "direct"]
    assert main.locator("thead th").nth(2).get_attribute("aria-sort") == "ascending"
    assert tab.locator(".panel:visible caption").inner_text() == "nDCG@10 by group of queries, percent"
    tab.get_by_text("Recall@100", exact=True).locator("visible=true").last.click()
    assert tab.locator(".panel:visible caption").inner_text() == "Recall@100 by group of queries, percent"


@pytest.mark.parametrize("text", ["", "x" * 5000, ARABIC])
def test_in_a_browser_nothing_is_wider_than_a_telephone(text: str, tab: Tab, tmp_path: Path) -> None:
    tab.goto(write_page(hostile_report(text or "short "), tmp_path / "page.html").as_uri())
    for detail in tab.locator("summary").all():
        detail.click()
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"  # dark
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"  # dark ink on white paper
