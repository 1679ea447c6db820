"""The documentation builds without a warning and loads nothing from other hosts; what its pages name exists."""

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

from lrem.config import Config, known_keys, load_config
from ray_apps.cli.main import app
from ray_apps.cluster.metrics import METRICS
from scripts import configuration

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")), *ROOT.glob("docs/*.md")])
FOLDERS = "benchmarks|configs|deploy|docs|lrem|ray_apps|scripts|tests"
KEYS = set(known_keys())
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "embed": "src"}
FETCHED = {"stylesheet", "icon", "preload", "preconnect", "modulepreload", "manifest", "dns-prefetch"}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


class Loaded(HTMLParser):
    """The URLs that a browser loads for a page, the classes of its elements, and the text in its pictures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.urls: list[str] = []
        self.drawn: list[str] = []
        self.classes: set[str] = set()
        self._in_text = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.classes |= set((attributes.get("class") or "").split())
        self._in_text = self._in_text or tag == "text"
        if tag == "link" and FETCHED & set((attributes.get("rel") or "").split()):
            self.urls.append(attributes.get("href") or "")
        elif url := attributes.get(LOADS.get(tag, "")):
            self.urls.append(url)

    def handle_endtag(self, tag: str) -> None:
        self._in_text = self._in_text and tag != "text"

    def handle_data(self, data: str) -> None:
        if self._in_text:
            self.drawn.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("docs") / "site"
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


def test_every_page_is_built_and_in_the_contents(site: Path) -> None:
    listed = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(path.name for path in ROOT.glob("docs/*.md"))
    for page in listed:
        file = site / ("index.html" if page == "index.md" else f"{page.removesuffix('.md')}/index.html")
        assert "<h1" in file.read_text(), page


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    htmls = sorted(site.rglob("*.html"))
    fetched = {url for html in htmls for url in Loaded(html.read_text()).urls}
    assert len(htmls) > 10
    assert any(url.endswith(".css") for url in fetched)
    assert [url for url in fetched if re.match(r"[a-z]+:|//", url) and not url.startswith("data:")] == []
    styles = "".join(path.read_text() for path in [*site.rglob("*.css"), *htmls])
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^\"')\s]*", styles) == []


def test_the_picture_is_in_the_page(site: Path) -> None:
    """It is inline, so that it follows the light and dark themes and its text can be selected."""
    page = Loaded((site / "concepts/index.html").read_text())
    assert "data-flow" in page.classes
    expected = {"triplets.parquet", "rl_pairs.parquet", "vectors.parquet", "Ray Data", "Ray Train + DeepSpeed"}
    expected |= {"vLLM actors", "Ray Serve", "lrem curate", "lrem cold-start", "lrem reinforce", "lrem serve"}
    assert expected <= set(page.drawn)
    assert (site / "assets/data_flow.svg").is_file()


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
    """Return the code of a page: the lines of its blocks, continued lines joined, and its spans."""
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
    """Return the words after each `lrem` in a piece of code.

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
        used = {word.partition("=")[0] for word in rest if re.match("--?[a-z]", word)}
        keys = {match[1] for word in rest if (match := re.match(r"([a-z][a-z0-9_.]*)=", word))}
        wrong += [f"lrem {' '.join(words)}: {name}" for name in sorted((used - options) | unknown(keys))]
    assert wrong == []


@every_page
def test_settings_exist(page: Path) -> None:
    """Dotted names that begin with a section are settings, unless they are files or names in the package `ray`."""
    named = {
        name
        for code in code_of(page)
        for name in re.findall(r"(?<![\w./:-])([a-z_]+(?:\.[a-z_0-9]+)+)(?![\w(/-])", code)
        if name.partition(".")[0] in SECTIONS and not re.search(r"\.(csv|html|jsonl?|md|parquet|py|ya?ml)$", name)
    }
    assert {name for name in unknown(named) if not is_in_ray(name)} == set()


@every_page
def test_configuration_files_can_be_loaded(page: Path) -> None:
    """Files of the repository behind `--config`; Ray Serve's own format is another one."""
    for file in {name for code in code_of(page) for name in re.findall(r"(?:--config|-c) (configs/\S+)", code)}:
        load_config(ROOT / file, [])


def unknown(names: set[str]) -> set[str]:
    """Return the names that are not settings; any name below a free table, such as `placement.data`, is one.

    >>> unknown({"serve.port", "serve.dor", "placement.data.any_name"})
    {'serve.dor'}
    """
    return {name for name in names - KEYS if not _is_free_table(name.rpartition(".")[0])}


def _is_free_table(key: str) -> bool:
    value: Any = Config().model_dump()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value == {}


def is_in_ray(name: str) -> bool:
    """
    >>> is_in_ray("ray.data.llm"), is_in_ray("ray.shutdown"), is_in_ray("ray.nothing"), is_in_ray("serve.port")
    (True, True, False, False)
    """
    package, first, *_ = name.split(".")
    return package == "ray" and (hasattr(ray, first) or importlib.util.find_spec(f"ray.{first}") is not None)


@every_page
def test_files_exist(page: Path) -> None:
    """Files of the repository that a page names."""
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


def test_the_operating_page_lists_every_metric() -> None:
    page = (ROOT / "docs/operating.md").read_text()
    assert {name for name, metric in METRICS.items() if f"| {metric.meaning} |" not in page} == set()
