"""A wheel that pip cannot download."""

from pathlib import Path

import pytest

from lrem.data.wheels import PinnedWheel, download
from lrem.errors import DataError


def test_what_pip_says_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Invalid requirement"):
        download(PinnedWheel("not a requirement", ""), tmp_path)
