"""Atomic writing: a reader sees the old artefact or the whole new one, never a part.

Knows local and mounted paths alone.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def _sibling(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` only if the block succeeds."""
    part = _sibling(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; it takes the name `path` only if the block succeeds.

    An older folder of that name is moved aside first, put back if the new one cannot take its place, and
    deleted last.
    """
    part, old = _sibling(path), _sibling(path)
    part.mkdir()
    try:
        yield part
        try:
            if path.exists():
                os.rename(path, old)
            os.rename(part, path)
        finally:
            if old.exists() and not path.exists():
                os.rename(old, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_parquet(table: pa.Table, path: Path) -> Path:
    """Write one parquet file atomically; returns `path`."""
    with atomic_file(path) as part:
        pq.write_table(table, part)
    return path


def write_json(value: Any, path: Path) -> Path:
    """Write indented JSON atomically; returns `path`."""
    with atomic_file(path) as part:
        part.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path


@contextmanager
def only_one(lock: Path, timeout_s: float) -> Iterator[None]:
    """Hold the file `lock`, made if it is not there, against every other process and thread that asks for it.

    Raises:
        TimeoutError: another held it all the time.
    """
    deadline = time.monotonic() + timeout_s
    with lock.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"waited {timeout_s:g} s for {lock}: another process holds it") from None
                time.sleep(0.05)
        yield


def sha256(file: Path) -> str:
    """The checksum of a file, as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
