"""Bearer keys and their scopes: read from a file, kept as digests, compared in constant time."""

import hashlib
import hmac
import ipaddress
from pathlib import Path
from typing import Literal

from lrem.errors import ConfigError

Scope = Literal["read", "write"]
SCOPES = ("read", "write")
MIN_KEY_LENGTH = 16  # characters


def read_keys(file: Path) -> dict[str, Scope]:
    """Return digest → scope of a file with one line `read KEY` or `write KEY` per key; `write` may also read.

    Raises:
        ConfigError: the file does not exist, a line is neither of the two, a key is too short, or one is repeated.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.keys_file={file} cannot be read ({error})") from error
    keys: dict[str, Scope] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        scope, _, key = line.strip().partition(" ")
        if scope not in SCOPES or len(key.strip()) < MIN_KEY_LENGTH or not key.isascii():
            raise ConfigError(
                f"{file}, line {number}: write 'read KEY' or 'write KEY', with at least {MIN_KEY_LENGTH} characters"
            )
        key_digest = digest(key.strip())
        if key_digest in keys:
            raise ConfigError(f"{file}, line {number}: this key stands on an earlier line too: keep one of the lines")
        keys[key_digest] = "write" if scope == "write" else "read"
    if not keys:
        raise ConfigError(f"{file} holds no key: write one line 'read KEY' or 'write KEY' per key")
    return keys


def digest(key: str) -> str:
    """Return the SHA-256 of a key: keys themselves are not kept."""
    return hashlib.sha256(key.encode()).hexdigest()


def scope_of(keys: dict[str, Scope], key: str) -> Scope | None:
    """Return the scope of a key, None if it is unknown; compares with every key, so that timing reveals nothing."""
    key_digest, result = digest(key), None
    for known, scope in keys.items():
        if hmac.compare_digest(known, key_digest):
            result = scope
    return result


def require_loopback(host: str) -> None:
    """Refuse to serve without keys on an address that other machines can reach.

    Raises:
        ConfigError: `host` is not a loopback address.
    """
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ConfigError(
            f"serve.host={host} can be reached by others: set serve.keys_file (lines 'read KEY' and 'write KEY'), "
            "or serve.host=127.0.0.1"
        )
