"""Files of keys: their scopes, and what is refused."""

from pathlib import Path

import pytest

from lrem.errors import ConfigError
from ray_apps.serving.auth import read_keys, scope_of

KEY, OTHER = "k" * 16, "o" * 16


def test_keys_have_scopes_also_behind_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"read {KEY}\n# a comment\n\nwrite {OTHER}\n", encoding="utf-8-sig")
    keys = read_keys(file)
    assert [scope_of(keys, key) for key in (KEY, OTHER, "x" * 16)] == ["read", "write", None]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"read {KEY}\nwrite {KEY}\n", "line 2: this key stands on an earlier line"),
        ("admin " + KEY, "line 1: write 'read KEY'"),
        ("read short", "with at least 16 characters"),
        ("# none\n", "holds no key"),
    ],
)
def test_a_file_that_says_two_things_or_nothing_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_keys(file)
