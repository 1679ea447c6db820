"""Judgements or reasonings by query id, on disk: one SQLite file, written once and read by many processes.

Reading needs constant memory, whatever the number of queries.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lrem.data.files import atomic_file
from lrem.data.schema import repeated_error

IDS_PER_STATEMENT = 500  # some builds of SQLite allow fewer than 1000 variables


def write_lookup(
    rows: Iterable[tuple[str, Any, Any]], path: Path, source: Path | str, key: Sequence[str] = ("query_id", "item_id")
) -> Path:
    """Write (query id, value, value) rows atomically, in their order.

    Args:
        rows: the rows; the query id may repeat if the key has a second column.
        path: the file to write.
        source: where the rows come from, for the message.
        key: the names of the one or two first columns, which identify a row.

    Raises:
        DataError: two rows have the same key.
    """
    with atomic_file(path) as temporary, closing(sqlite3.connect(temporary)) as store, store:
        store.execute("PRAGMA journal_mode=OFF")  # a new file: it is finished or discarded as a whole
        store.execute("CREATE TABLE known (query_id TEXT, a, b)")
        store.executemany("INSERT INTO known VALUES (?, ?, ?)", rows)
        columns = "query_id, a" if len(key) > 1 else "query_id"
        store.execute(f"CREATE INDEX by_key ON known ({columns})")
        repeated = f"SELECT {columns} FROM known GROUP BY {columns} HAVING count(*) > 1 LIMIT 1"
        for values in store.execute(repeated):
            raise repeated_error(source, dict(zip(key, values, strict=True)))
    return path


class QueryLookup:
    """Read access to a file of `write_lookup`."""

    def __init__(self, path: Path) -> None:
        self._store = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def get(self, query_ids: Sequence[str]) -> dict[str, list[tuple[Any, Any]]]:
        """Return query id → its (value, value) rows, for the ids that have any."""
        rows: dict[str, list[tuple[Any, Any]]] = {}
        for start in range(0, len(query_ids), IDS_PER_STATEMENT):
            chunk = list(query_ids[start : start + IDS_PER_STATEMENT])
            marks = ",".join("?" * len(chunk))
            statement = f"SELECT query_id, a, b FROM known WHERE query_id IN ({marks}) ORDER BY rowid"
            for query_id, a, b in self._store.execute(statement, chunk):
                rows.setdefault(query_id, []).append((a, b))
        return rows
