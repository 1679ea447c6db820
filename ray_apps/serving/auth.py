"""Who may do what: bearer keys with scopes, kept as digests, compared in constant time.

Knows a file of keys; does not know HTTP.
"""

import hashlib
import hmac
import ipaddress
from pathlib import Path
from typing import Literal

from lrem.errors import ConfigError

Scope = Literal["read", "write"]
SCOPES = ("read", "write")
SHORTEST = 16  # characters of a key


def read_keys(file: Path) -> dict[str, Scope]:
    """digest → scope, of a file with a line `read KEY` or `write KEY` for each; `write` may also read.

    Raises:
        ConfigError: the file is not there, a line is none of the two, or a key is short.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.keys_file={file} cannot be read ({error})") from error
    keys: dict[str, Scope] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        scope, _, key = line.strip().partition(" ")
        if scope not in SCOPES or len(key.strip()) < SHORTEST or not key.isascii():
            raise ConfigError(
                f"{file}, line {number}: write 'read KEY' or 'write KEY' with a key of {SHORTEST} or more characters"
            )
        keys[digest(key.strip())] = "write" if scope == "write" else "read"
    if not keys:
        raise ConfigError(f"{file} holds no key: write 'read KEY' or 'write KEY' on a line each")
    return keys


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def scope_of(keys: dict[str, Scope], key: str) -> Scope | None:
    """What a key may do; it is compared with every one, so that the time says nothing."""
    given, found = digest(key), None
    for known, scope in keys.items():
        if hmac.compare_digest(known, given):
            found = scope
    return found


def require_loopback(host: str) -> None:
    """Without keys only this machine may ask.

    Raises:
        ConfigError: others could reach `host`.
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
