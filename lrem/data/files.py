"""Atomic writes: a reader sees the old artefact or the whole new one, never a partial one. Local and mounted paths."""

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


def _temporary_sibling(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` only if the block succeeds."""
    temporary = _temporary_sibling(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; it takes the name `path` only if the block succeeds.

    An older folder of that name is moved aside first, restored if the new one cannot take its place, and deleted last.
    """
    temporary, old = _temporary_sibling(path), _temporary_sibling(path)
    temporary.mkdir()
    try:
        yield temporary
        try:
            if path.exists():
                os.rename(path, old)
            os.rename(temporary, path)
        finally:
            if old.exists() and not path.exists():
                os.rename(old, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_parquet(table: pa.Table, path: Path) -> Path:
    """Write one parquet file atomically; return `path`."""
    with atomic_file(path) as temporary:
        pq.write_table(table, temporary)
    return path


def write_json(value: Any, path: Path) -> Path:
    """Write indented JSON atomically; return `path`."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path


@contextmanager
def exclusive_lock(file: Path, timeout_s: float) -> Iterator[None]:
    """Hold a lock on `file`, created if needed, against all other processes and threads.

    Raises:
        TimeoutError: another process held the lock for all of `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    with file.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"waited {timeout_s:g} s for {file}: another process holds it") from None
                time.sleep(0.05)
        yield


def checksum(path: Path) -> str:
    """Return the SHA-256 checksum of a file, or one of a folder that covers its files' names and contents."""
    if not path.is_dir():
        return sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0] not in "._")  # as readers do
    return hashlib.sha256(str([(str(file.relative_to(path)), sha256(file)) for file in files]).encode()).hexdigest()


def sha256(file: Path) -> str:
    """Return a file's SHA-256 checksum in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
