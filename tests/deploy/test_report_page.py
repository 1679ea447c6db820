"""The report page in a real Chromium: sorting, choosing a measure, a telephone's width, dark and print colours."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from lrem.evaluation.page import write_page
from tests.browser import launch_chromium
from tests.report_pages import ARABIC, full_report, hostile_report


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium for all tests of this module."""
    with launch_chromium() as chromium:
        yield chromium


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a telephone's width in dark mode; it must raise no error and load nothing from the network."""
    with browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark") as context:
        page = context.new_page()
        page.set_default_timeout(30_000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))  # also violations of the page's own policy
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        yield page
        assert errors == []
        assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_tables_sort_and_the_chosen_measure_is_shown(page: Page, tmp_path: Path) -> None:
    report = full_report()
    del report["systems"]["direct"]["all"]["RR@10"]
    page.goto(write_page(report, tmp_path / "page.html").as_uri())
    main = page.locator("table").first
    button = main.get_by_role("button", name="MRR@10")
    assert main.locator("tbody th").all_inner_texts() == ["BM25", "direct", "LREM + RL"]
    button.click()
    assert main.locator("tbody th").all_inner_texts() == ["LREM + RL", "BM25", "direct"]  # missing values stay last
    button.click()
    assert main.locator("tbody th").all_inner_texts() == ["BM25", "LREM + RL", "direct"]
    assert main.locator("thead th").nth(2).get_attribute("aria-sort") == "ascending"
    assert page.locator(".panel:visible caption").inner_text() == "nDCG@10 by group of queries, percent"
    page.get_by_text("Recall@100", exact=True).locator("visible=true").last.click()
    assert page.locator(".panel:visible caption").inner_text() == "Recall@100 by group of queries, percent"


@pytest.mark.parametrize("text", ["", "x" * 5000, ARABIC])
def test_nothing_is_wider_than_a_telephone(text: str, page: Page, tmp_path: Path) -> None:
    page.goto(write_page(hostile_report(text or "short "), tmp_path / "page.html").as_uri())
    for detail in page.locator("summary").all():
        detail.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"  # dark
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"  # dark ink on white paper
