"""The book: it builds without a warning and asks nothing of other hosts, and what it tells to type or to set exists."""

import doctest
import importlib.util
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import ray
import typer
import yaml

from lrem.config import Config, known_keys
from ray_apps.cli.main import app
from ray_apps.cluster.metrics import METRICS
from scripts import configuration

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
FOLDERS = "benchmarks|configs|deploy|docs|lrem|ray_apps|scripts|tests"
KEYS = set(known_keys())
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "embed": "src"}
FETCHED = {"stylesheet", "icon", "preload", "preconnect", "modulepreload", "manifest", "dns-prefetch"}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


class Loaded(HTMLParser):
    """What a browser fetches by itself for a page, the classes it uses, and the words inside its pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.drawn: list[str] = []
        self.classes: set[str] = set()
        self._in_text = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.classes |= set((given.get("class") or "").split())
        self._in_text = self._in_text or tag == "text"
        if tag == "link" and FETCHED & set((given.get("rel") or "").split()):
            self.urls.append(given.get("href") or "")
        elif url := given.get(LOADS.get(tag, "")):
            self.urls.append(url)

    def handle_endtag(self, tag: str) -> None:
        self._in_text = self._in_text and tag != "text"

    def handle_data(self, data: str) -> None:
        if self._in_text:
            self.drawn.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built book."""
    folder = tmp_path_factory.mktemp("book") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def pages_of(nav: Any) -> list[str]:
    """
    >>> pages_of([{"Home": "index.md"}, {"Stages": [{"One": "one.md"}]}])
    ['index.md', 'one.md']
    """
    if isinstance(nav, str):
        return [nav]
    return [page for one in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(one)]


def test_every_page_is_there_and_in_the_contents(site: Path) -> None:
    listed = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(path.name for path in ROOT.glob("docs/*.md"))
    for page in listed:
        made = site / ("index.html" if page == "index.md" else f"{page.removesuffix('.md')}/index.html")
        assert "<h1" in made.read_text(), page


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    htmls = sorted(site.rglob("*.html"))
    fetched = {url for html in htmls for url in Loaded(html.read_text()).urls}
    assert len(htmls) > 10
    assert any(url.endswith(".css") for url in fetched)
    assert [url for url in fetched if re.match(r"[a-z]+:|//", url) and not url.startswith("data:")] == []
    styles = "".join(path.read_text() for path in [*site.rglob("*.css"), *htmls])
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^\"')\s]*", styles) == []


def test_the_picture_is_in_the_page(site: Path) -> None:
    """Inside the page, so that it follows its light and dark, and its words can be selected."""
    page = Loaded((site / "concepts/index.html").read_text())
    assert "way-of-data" in page.classes
    wanted = {"triplets.parquet", "rl_pairs.parquet", "vectors.parquet", "Ray Data", "Ray Train + DeepSpeed"}
    wanted |= {"vLLM actors", "Ray Serve", "lrem curate", "lrem cold-start", "lrem reinforce", "lrem serve"}
    assert wanted <= set(page.drawn)
    assert (site / "assets/way_of_data.svg").is_file()


def test_every_snippet_is_included(site: Path) -> None:
    pages = [page.read_text() for page in site.rglob("index.html")]
    assert len(pages) > 10
    assert not [page for page in pages if "--8<--" in page or "--8&lt;--" in page]


def test_the_page_of_settings_is_current() -> None:
    assert doctest.testmod(configuration).failed == 0
    rows = [setting.path for setting in configuration.settings()]
    assert len(rows) == len(set(rows))
    assert not [setting.path for setting in configuration.settings() if not setting.meaning]
    assert set(rows) == KEYS - {key for key in KEYS if any(other.startswith(f"{key}.") for other in KEYS)}
    message = "settings have changed: run python scripts/configuration.py"
    assert configuration.PAGE.read_text() == configuration.page(), message


def code_of(page: Path) -> list[str]:
    """Code of a page: each line of an indented or fenced block (one that ends in a backslash goes on), each span."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    fences = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    blocks = re.findall(r"(?:^|\n\n)((?: {4}.*\n?|\n(?= {4}))+)", text)
    lines = [line.strip() for block in [*fences, *blocks] for line in block.splitlines()]
    spans = [re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    return [line.split("  # ")[0] for line in lines if line] + spans


@every_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for code in code_of(page) for name in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", code)}
    assert named <= targets


def commands(code: str) -> list[list[str]]:
    """The words behind each `lrem` of a piece of code.

    >>> commands("RAY_X=1 ray job submit -- lrem index recall -k 10 seed=7 && .venv/bin/lrem demo")
    [['index', 'recall', '-k', '10', 'seed=7'], ['demo']]
    """
    calls = re.findall(r"(?:^|[\s/(])lrem ([^|;&]+)", code)
    return [words for call in calls if (words := call.split()) and re.fullmatch("[a-z-]+", words[0])]


@every_page
def test_commands_options_and_overrides_exist(page: Path) -> None:
    root: Any = typer.main.get_command(app)
    wrong = []
    for words in [words for code in code_of(page) for words in commands(code)]:
        command, rest = root, list(words)
        while command is not None and hasattr(command, "commands") and rest:
            command = command.commands.get(rest.pop(0))
        if command is None:
            wrong.append(f"lrem {' '.join(words)}: no such command")
            continue
        options = {name for option in command.params for name in [*option.opts, *option.secondary_opts]} | {"--help"}
        asked = {word.partition("=")[0] for word in rest if re.match("--?[a-z]", word)}
        keys = {found[1] for word in rest if (found := re.match(r"([a-z][a-z0-9_.]*)=", word))}
        wrong += [f"lrem {' '.join(words)}: {name}" for name in sorted((asked - options) | unknown(keys))]
    assert wrong == []


@every_page
def test_settings_exist(page: Path) -> None:
    """A dotted name whose first part is a section, but for files and for names of Ray's own package."""
    named = {
        name
        for code in code_of(page)
        for name in re.findall(r"(?<![\w./:-])([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w(/-])", code)
        if name.partition(".")[0] in SECTIONS and not re.search(r"\.(csv|html|jsonl?|md|parquet|py|ya?ml)$", name)
    }
    assert {name for name in unknown(named) if not is_rays(name)} == set()


def unknown(names: set[str]) -> set[str]:
    """Those that are no setting; what stands below a table of your own names, as `placement.data`, is one.

    >>> unknown({"serve.port", "serve.door", "placement.data.any_name"})
    {'serve.door'}
    """
    return {name for name in names - KEYS if not _open(name.rpartition(".")[0])}


def _open(key: str) -> bool:
    found: Any = Config().model_dump()
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found == {}


def is_rays(name: str) -> bool:
    """
    >>> is_rays("ray.data.llm"), is_rays("ray.shutdown"), is_rays("ray.nothing"), is_rays("serve.port")
    (True, True, False, False)
    """
    package, first, *_ = name.split(".")
    return package == "ray" and (hasattr(ray, first) or importlib.util.find_spec(f"ray.{first}") is not None)


@every_page
def test_files_exist(page: Path) -> None:
    """Of the repository, where a page names one; a line of results may be written by a run, so folders count too."""
    named = {
        name
        for code in code_of(page)
        for name in re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]*\w\.[a-z]+)(?![\w/*])", code)
    }
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_links_of_the_readme_resolve() -> None:
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "mailto"))]
    assert len(links) >= 8
    for link in links:
        name, _, anchor = link.partition("#")
        target = (ROOT / name) if name else ROOT / "README.md"
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def anchors(markdown: str) -> set[str]:
    """
    >>> sorted(anchors("# One\\n\\n## Two `words`, here\\n"))
    ['one', 'two-words-here']
    """
    titles = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.strip().lower())) for title in titles}


def test_operating_has_every_metric() -> None:
    page = (ROOT / "docs/operating.md").read_text()
    assert {name for name, metric in METRICS.items() if f"| {metric.meaning} |" not in page} == set()
