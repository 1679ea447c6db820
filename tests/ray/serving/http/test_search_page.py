"""The search page in a real Chromium: typing, reading and tabbing give what the API answers."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

from lrem.config import Config
from ray_apps.serving import deploy
from tests.browser import launch_chromium
from tests.serving import QUERIES, TITLES, Served, suspend

DESKTOP = ViewportSize(width=1280, height=900)
PHONE = ViewportSize(width=360, height=740)
SUMMARY = re.compile("because of the keywords")
WAIT_MS = 30_000  # the CPUs are shared with Ray


class Site(NamedTuple):
    """The running service and a query whose results differ with and without thinking."""

    config: Config
    url: str
    http: httpx.Client
    query: str

    def result(self, reason: str, where: Any = None) -> dict[str, Any]:
        body = {"query": self.query, "reason": reason, "k": 10, "filter": where}
        response = self.http.post("/v1/search", json=body)
        assert response.status_code == 200, response.text
        return response.json()["results"][0]

    def ids(self, reason: str, where: Any = None) -> list[str]:
        return [item["item_id"] for item in self.result(reason, where)["items"]]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=WAIT_MS)
    with launch_chromium() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def site(browser: Browser, served: Served, world: Config) -> Iterator[Site]:
    """The shared service with an ingress without a cache, so that every response has timings."""
    config = world.model_copy(update={"serve": world.serve.model_copy(update={"cache_size": 0})})
    deploy.start(config)
    candidates = [Site(config, served.url, served.http, query) for query in QUERIES + TITLES]
    yield next(site for site in candidates if set(site.ids("never")) != set(site.ids("always")))
    deploy.start(world)


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """The page of a new visitor; it must raise no error and load nothing from other servers."""
    with browser.new_context(viewport=DESKTOP) as context:
        context.set_default_timeout(WAIT_MS)
        tab = context.new_page()
        errors: list[Any] = []
        loaded: list[str] = []
        tab.on("pageerror", lambda error: errors.append(error))
        tab.on("request", lambda request: loaded.append(request.url))
        tab.goto(site.url)
        yield tab
        assert errors == []
        assert [url for url in loaded if not url.startswith((site.url, "data:"))] == []


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("LREM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))


def status(page: Page) -> Locator:
    return page.get_by_role("status")


def wait_for_answer(page: Page) -> None:
    expect(status(page)).to_have_text(SUMMARY)
    expect(page.locator(".waiting")).to_have_count(0)


def type_query(page: Page, query: str) -> None:
    """Type a query by keyboard alone: the search box has the focus once the page is drawn."""
    expect(page.get_by_label("Search query")).to_be_focused()
    page.keyboard.type(query)
    page.keyboard.press("Enter")


def search(page: Page, query: str) -> None:
    type_query(page, query)
    wait_for_answer(page)


def add_filter(page: Page, field: str, operator: str, value: str = "") -> None:
    """Add a filter by keyboard alone, from the field's input to Enter."""
    page.get_by_label("Field").focus()
    page.keyboard.type(field)
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    for _ in range(page.locator("#operator option").all_text_contents().index(operator)):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.type(value)
    page.keyboard.press("Enter")


def shown_ids(page: Page, column: str) -> list[str]:
    return page.locator(f"#{column} .items li").evaluate_all("lines => lines.map(line => line.dataset.id)")


def ids_with_badge(page: Page, column: str, badge: str) -> set[str]:
    lines = page.locator(f"#{column} .items li", has=page.get_by_text(badge, exact=True))
    return set(lines.evaluate_all("lines => lines.map(line => line.dataset.id)"))


def filter_in_address(page: Page) -> Any:
    values = parse_qs(urlsplit(page.url).fragment).get("filter")
    return values and json.loads(values[0])


def assert_columns(page: Page, site: Site, where: Any = None) -> None:
    """Both columns show what the API answers, and the query is in the part of the address that no server receives."""
    for column in ("never", "always"):
        assert shown_ids(page, column) == site.ids(column, where)
    assert parse_qs(urlsplit(page.url).fragment)["q"] == [site.query]
    assert urlsplit(page.url).query == ""
    assert filter_in_address(page) == where


def test_both_columns_show_what_the_api_answers(page: Page, site: Site, screenshots: Path) -> None:
    search(page, site.query)
    assert_columns(page, site)
    direct, thought = set(site.ids("never")), set(site.ids("always"))
    assert ids_with_badge(page, "always", "new") == thought - direct
    assert ids_with_badge(page, "never", "gone with thinking") == direct - thought
    assert f"{len(thought - direct)} of 10 items" in status(page).inner_text()
    keywords = [word.strip() for word in site.result("always")["reasoning"].split(",")]
    assert page.locator("#always .chips li").all_text_contents() == [word for word in keywords if word]
    assert page.locator("#never .chips li").count() == 0
    assert re.search(r"reason [\d.]+ ms .*total", page.locator("#always .timings").inner_text())
    assert "reason" not in page.locator("#never .timings").inner_text()
    page.screenshot(path=screenshots / "desktop.png", full_page=True)


def test_filters_narrow_both_columns_and_can_be_removed(page: Page, site: Site, screenshots: Path) -> None:
    search(page, site.query)
    tags, price = {"tags": {"$in": ["red", "blue"]}}, {"price": {"$lte": 9.5}}
    add_filter(page, "tags", "contains any of", "red, blue")
    chips = page.get_by_role("list", name="Filters in force").get_by_role("button")
    expect(chips).to_have_text(["tags contains any of red, blue"])
    wait_for_answer(page)
    assert_columns(page, site, tags)
    add_filter(page, "price", "at most", "9.5")
    expect(chips).to_have_count(2)
    wait_for_answer(page)
    both = {"$and": [tags, price]}
    assert_columns(page, site, both)
    matches = {f"p{i}" for i, title in enumerate(TITLES) if title.split()[0] in ("red", "blue") and i % 2 == 0}
    assert set(shown_ids(page, "never")) == set(shown_ids(page, "always")) == matches
    page.screenshot(path=screenshots / "filters.png", full_page=True)

    page.reload()  # like a visitor who was sent the address
    wait_for_answer(page)
    assert_columns(page, site, both)
    for remaining in (price, None):
        page.get_by_label("Remove filter").first.focus()
        page.keyboard.press("Enter")
        wait_for_answer(page)
        assert_columns(page, site, remaining)
    expect(page.get_by_label("Field")).to_be_focused()  # no chip remains that could take the focus
    expect(chips).to_have_count(0)


def test_fields_of_the_results_are_suggested(page: Page, site: Site) -> None:
    assert page.locator("#fields option").count() == 0
    search(page, site.query)
    suggested = page.locator("#fields option").evaluate_all("options => options.map(option => option.value)")
    assert suggested == ["price", "tags", "title"]


SENT = [
    ("is", "9.5", {"$eq": 9.5}),
    ("is", "true", {"$eq": True}),
    ("is", '"9.5"', {"$eq": "9.5"}),
    ("is", "red, blue", {"$eq": "red, blue"}),
    ("is not", "007", {"$ne": "007"}),
    ("at least", "-2000", {"$gte": -2000}),
    ("at most", "0", {"$lte": 0}),
    ("contains any of", '1, "1", "a, b", <b>, false', {"$in": [1, "1", "a, b", "<b>", False]}),
    ("contains none of", "red", {"$nin": ["red"]}),
    ("exists", "", {"$exists": True}),
    ("does not exist", "", {"$exists": False}),
]


def test_values_are_sent_with_their_type(page: Page) -> None:
    """Every operator; a chip reads as it was typed."""
    for operator, value, condition in SENT:
        add_filter(page, "a b", operator, value)
        chip = page.get_by_role("button", name="Remove filter")
        expect(chip).to_have_text(f"a b {operator} {value}".strip())
        assert filter_in_address(page) == {"a b": condition}
        chip.click()
        assert filter_in_address(page) is None


def test_errors_appear_in_the_status_line(page: Page, site: Site) -> None:
    expect(page.get_by_label("Search query")).to_be_focused()
    page.keyboard.press("Enter")
    expect(status(page)).to_have_text("Write what you are looking for.")
    search(page, site.query)
    add_filter(page, "", "is", "9")
    expect(status(page)).to_have_text(re.compile("Write the field"))
    page.get_by_label("Value").fill("")
    add_filter(page, "price", "at least")
    expect(status(page)).to_have_text(re.compile("Write the value"))
    page.get_by_label("Field").fill("")
    add_filter(page, "price", "at least", "cheap")
    response = site.http.post("/v1/search", json={"query": "tea", "filter": {"price": {"$gte": "cheap"}}})
    assert response.status_code == 422
    expect(status(page)).to_have_text(f"The search failed: {response.json()['error']['message']}")
    assert page.locator("#columns").is_hidden()
    page.get_by_label("Remove filter").press("Enter")
    wait_for_answer(page)
    assert_columns(page, site)


@pytest.mark.parametrize(("where", "message"), [("{", "cannot be read"), ('{"a": {"$has": 1}}', "no such operator")])
def test_a_damaged_address_is_an_error_in_the_status_line(page: Page, site: Site, where: str, message: str) -> None:
    page.goto(f"{site.url}#{urlencode({'q': site.query, 'filter': where})}")
    expect(status(page)).to_have_text(re.compile(message))
    expect(page.get_by_label("Search query")).to_have_value(site.query)


def test_another_address_in_the_same_tab_is_searched(page: Page, site: Site) -> None:
    search(page, "somewhere to sit")
    where = {"price": {"$lte": 9.5}}
    page.evaluate("address => { location.hash = address }", urlencode({"q": site.query, "filter": json.dumps(where)}))
    expect(page.get_by_label("Search query")).to_have_value(site.query)
    wait_for_answer(page)
    assert_columns(page, site, where)
    page.go_back()
    expect(page.get_by_label("Search query")).to_have_value("somewhere to sit")
    wait_for_answer(page)
    assert filter_in_address(page) is None


def test_a_phone_scrolls_in_one_direction(page: Page, site: Site, screenshots: Path) -> None:
    page.set_viewport_size(PHONE)
    search(page, site.query)
    add_filter(page, "tags", "contains none of", "a rather long value that has to be broken, somewhere-" + "x" * 60)
    expect(page.get_by_label("Remove filter")).to_have_count(1)
    wait_for_answer(page)
    width = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width == [PHONE["width"]] * 2
    ends = "them => them.map(it => [it.offsetTop, it.offsetTop + it.offsetHeight])"
    (_, bottom), (top, _) = page.locator("section").evaluate_all(ends)
    assert bottom <= top  # one column below the other
    page.screenshot(path=screenshots / "phone.png", full_page=True)


FOCUSED = """() => {
  const it = document.activeElement;
  const {outlineStyle, outlineWidth} = getComputedStyle(it);
  return [it.getAttribute("aria-label") ?? it.textContent.trim(), `${outlineStyle} ${outlineWidth}`];
}"""


def test_tab_reaches_every_control_in_order(page: Page, site: Site) -> None:
    search(page, site.query)
    add_filter(page, "tags", "is", "red")
    wait_for_answer(page)
    page.get_by_label("Search query").focus()
    walk = []
    for _ in range(page.locator("button:visible, input:visible, select:visible").count()):
        walk.append(page.evaluate(FOCUSED))
        page.keyboard.press("Tab")
    assert [label for label, _ in walk] == [
        *("Search query", "Search", "Field", "Comparison", "Value", "Add filter"),
        *("Remove filter: tags is red", "tea & <pot>"),
    ]
    assert {outline for _, outline in walk} == {"solid 3px"}
    page.keyboard.press("Shift+Tab")
    page.get_by_role("button", name="tea & <pot>").press("Enter")  # an example is searched at once
    expect(page).to_have_url(re.compile(r"q=tea\+%26\+%3Cpot%3E"))
    wait_for_answer(page)


@pytest.fixture
def impatient_ingress(site: Site, tmp_path: Path) -> Iterator[None]:
    """The same deployments behind an ingress that requires a key and has no time to think."""
    (tmp_path / "keys").write_text("read 0123456789abcdef\n")
    changes = {"keys_file": tmp_path / "keys", "reason_timeout_s": 0.001, "search_timeout_s": 2.0}
    deploy.start(site.config.model_copy(update={"serve": site.config.serve.model_copy(update=changes)}))
    yield
    deploy.start(site.config)


def test_the_page_asks_for_a_key_and_shows_what_failed(
    impatient_ingress: None, page: Page, site: Site, screenshots: Path
) -> None:
    assert page.get_by_label("API key").is_hidden()
    type_query(page, site.query)
    expect(status(page)).to_have_text(re.compile("no key was sent"))
    expect(page.get_by_label("API key")).to_be_focused()
    page.screenshot(path=screenshots / "key.png", full_page=True)
    page.keyboard.type("0123456789abcdex")
    page.keyboard.press("Enter")
    expect(status(page)).to_have_text(re.compile("not known"))
    page.get_by_label("API key").fill("0123456789abcdef")
    page.keyboard.press("Enter")
    notes = page.locator("#always .note"), page.locator("#never .note")
    expect(notes[0]).to_have_text("answered without thinking: the reasoner is down or late")
    expect(status(page)).to_have_text(re.compile("without thinking"))
    assert page.get_by_label("API key").is_hidden()
    assert notes[1].is_hidden()
    assert "0123" not in page.url
    assert shown_ids(page, "always") == shown_ids(page, "never") != []
    assert page.locator(".badge").count() == 0

    with suspend("IndexShard0"):
        page.reload()  # the tab keeps the key
        for note in notes:
            expect(note).to_have_text(re.compile("part of the catalogue could not be searched"))
    expect(status(page)).to_have_text("Part of the catalogue is missing: nothing is compared.")
    assert page.locator(".badge").count() == 0
    page.screenshot(path=screenshots / "degraded.png", full_page=True)
