"""What is known of a query, on disk: judgements and reasonings by query id, however many, in constant memory.

A file that is written once and then read by many processes. Knows SQLite; does not know what the values mean.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lrem.data.files import atomic_file

ASKED = 500  # ids of one statement; SQLite takes some hundreds everywhere


def write_lookup(rows: Iterable[tuple[str, Any, Any]], path: Path) -> Path:
    """Write (query id, value, value) rows atomically; they are kept in the order in which they came."""
    with atomic_file(path) as part:
        store = sqlite3.connect(part)
        with store:
            store.execute("PRAGMA journal_mode=OFF")  # the file is new: it is whole, or is thrown away
            store.execute("CREATE TABLE known (query_id TEXT, a, b)")
            store.executemany("INSERT INTO known VALUES (?, ?, ?)", rows)
            store.execute("CREATE INDEX by_query ON known (query_id)")
        store.close()
    return path


class Lookup:
    """Reads what `write_lookup` wrote."""

    def __init__(self, path: Path) -> None:
        self._store = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def of(self, query_ids: Sequence[str]) -> dict[str, list[tuple[Any, Any]]]:
        """Query id → its (value, value) rows; ids of which nothing is known are left out."""
        found: dict[str, list[tuple[Any, Any]]] = {}
        for start in range(0, len(query_ids), ASKED):
            some = list(query_ids[start : start + ASKED])
            marks = ",".join("?" * len(some))
            statement = f"SELECT query_id, a, b FROM known WHERE query_id IN ({marks}) ORDER BY rowid"
            for query_id, a, b in self._store.execute(statement, some):
                found.setdefault(query_id, []).append((a, b))
        return found
