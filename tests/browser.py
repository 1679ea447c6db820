"""Chromium for the tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    """Start the installed Chromium; without one the test is skipped, or fails in CI.

    Do not keep it for a whole session: while it runs, `asyncio.run` fails in this thread.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        message = "the pages are tested in Chromium: install chromium (Debian, Ubuntu: apt-get install chromium)"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with sync_playwright() as playwright:
        # Chromium's sandbox refuses to run as root, as in most containers.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        with playwright.chromium.launch(executable_path=path, args=args) as chromium:
            yield chromium
