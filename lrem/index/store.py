"""The durable items of a collection: ids, payloads and vectors in SQLite.

Every upsert gives its item a new row number, greater than all before and never reused. A search structure that knows
its last row can therefore be brought up to date (`items_after`), and a row that is missing here is a tombstone.
A write is on disk when the call returns (write-ahead log, synchronous=FULL).
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrem.errors import StoreError

TIMEOUT_S = 30.0  # waiting for another process that writes
MAPPED_BYTES = 2**31  # bytes of the file that are memory-mapped
VARIABLES = 30_000  # per statement; SQLite allows 32,766
SCHEMA = """
CREATE TABLE items (
    row INTEGER PRIMARY KEY AUTOINCREMENT, item_id TEXT NOT NULL UNIQUE, payload TEXT NOT NULL, vector BLOB NOT NULL);
CREATE TABLE dropped (seq INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL, item_id TEXT NOT NULL);
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
REMEMBERED_DELETIONS = 1_000_000  # deletions, for those who follow the changes: other processes, a newer index


class ItemRecord(NamedTuple):
    """One item; `vector` is [H] float32 of unit length."""

    row: int
    item_id: str
    payload: dict[str, Any]
    vector: np.ndarray


class Store:
    """One open SQLite file.

    Args:
        about: properties that must be the same at every opening, such as the model's fingerprint and the dimension.
        create: create the file if it does not exist; `about` must then be complete.

    Raises:
        StoreError: the file does not exist, has another `about`, is damaged, or cannot be opened.
    """

    def __init__(self, file: Path, about: Mapping[str, str | int], create: bool) -> None:
        if not create and not file.exists():
            raise StoreError(f"{file} does not exist: build the collection, or restore a snapshot")
        self.file, self._lock = file, threading.RLock()
        self._connection: sqlite3.Connection | None = sqlite3.connect(
            file, timeout=TIMEOUT_S, check_same_thread=False, isolation_level=None
        )
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA mmap_size={MAPPED_BYTES}")
            with self._transaction():
                if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'about'").fetchone():
                    self._create(about, create)
            self.about = {name: json.loads(value) for name, value in self._db.execute("SELECT name, value FROM about")}
            self._check(about)
        except sqlite3.OperationalError as error:
            self.close()
            raise StoreError(
                f"{file} cannot be opened ({error}): check whether another process uses it or the disk is full"
            ) from error
        except sqlite3.DatabaseError as error:
            self.close()
            raise StoreError(f"{file} is damaged or not a store ({error}): restore a snapshot") from error
        except BaseException:
            self.close()
            raise

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.file} is closed: open the collection again")
        return self._connection

    def _create(self, about: Mapping[str, str | int], create: bool) -> None:
        if not create:
            raise StoreError(f"{self.file} is empty: build the collection, or restore a snapshot")
        for statement in SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.executemany("INSERT INTO about VALUES (?, ?)", [(k, json.dumps(v)) for k, v in about.items()])

    def _check(self, about: Mapping[str, str | int]) -> None:
        for name, expected in about.items():
            if self.about.get(name) != expected:
                raise StoreError(
                    f"{self.file} was created with {name} {self.about.get(name)}, not with {name} {expected}: "
                    "build a new collection in another folder"
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk has rolled it back already
                    self._db.execute("ROLLBACK")
                raise

    def upsert(self, ids: Sequence[str], payloads: Sequence[str], vectors: np.ndarray) -> tuple[range, list[int]]:
        """Insert or replace items, all or none.

        Args:
            ids: without repetitions.
            payloads: JSON.
            vectors: [N, H] float32.

        Returns:
            The new rows, in the order of `ids`, and the rows that they replace.
        """
        blobs = np.ascontiguousarray(vectors, "<f4")
        with self._transaction():
            replaced = self._delete(ids)
            first = self.last_row + 1
            rows = range(first, first + len(ids))
            values = (
                (row, item_id, payload, blob.tobytes())
                for row, item_id, payload, blob in zip(rows, ids, payloads, blobs, strict=True)
            )
            self._db.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", values)
        return rows, replaced

    def delete(self, ids: Sequence[str]) -> list[int]:
        """Delete items, all or none, and return their rows; unknown ids are ignored."""
        with self._transaction():
            return self._delete(ids)

    def _delete(self, ids: Sequence[str]) -> list[int]:
        deleted = self.rows_of(ids)
        rows = list(deleted.values())
        self._db.executemany("DELETE FROM items WHERE row = ?", [(row,) for row in rows])
        self._db.executemany("INSERT INTO dropped (row, item_id) VALUES (?, ?)", [(r, i) for i, r in deleted.items()])
        self._db.execute("DELETE FROM dropped WHERE seq <= ?", (self.last_drop - REMEMBERED_DELETIONS,))
        return rows

    @property
    def last_row(self) -> int:
        """The greatest row number ever used, 0 before the first."""
        return self._sequence("items")

    @property
    def last_drop(self) -> int:
        """The number of the newest deletion, 0 before the first."""
        return self._sequence("dropped")

    def _sequence(self, table: str) -> int:
        with self._lock:
            result = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,)).fetchone()
        return int(result[0]) if result else 0

    def deletions_after(self, drop: int) -> dict[int, str] | None:
        """Return row → item_id of the deletions after number `drop`, or None if some are no longer remembered."""
        with self._lock:
            query = "SELECT seq, row, item_id FROM dropped WHERE seq > ? ORDER BY seq"
            deletions = self._db.execute(query, (drop,)).fetchall()
        complete = not deletions or deletions[0][0] == drop + 1
        return {row: item_id for _, row, item_id in deletions} if complete else None

    @property
    def version(self) -> int:
        """A number that changes whenever another connection, also of another process, has written to the file."""
        with self._lock:
            return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT COUNT(*) FROM items").fetchone()[0])

    def rows_of(self, ids: Sequence[str]) -> dict[str, int]:
        """Return item_id → row of the ids that exist."""
        return dict(self._where("item_id", ids, "item_id, row"))

    def read(self, rows: Sequence[int]) -> dict[int, tuple[str, dict[str, Any]]]:
        """Return row → (item_id, payload) of the rows that exist."""
        records = self._where("row", rows, "row, item_id, payload")
        payloads = parse_payloads([payload for _, _, payload in records])
        return {row: (item_id, payload) for (row, item_id, _), payload in zip(records, payloads, strict=True)}

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the vectors of rows, [N, H] float32, in their order. Raises KeyError if a row was deleted."""
        blobs = dict(self._where("row", rows, "row, vector"))
        return _matrix([blobs[row] for row in rows], self.about["dimension"])

    def sample(self, count: int) -> np.ndarray:
        """Return the vectors of up to `count` random items, [N, H] float32; the same ones each time."""
        rows = self.rows()
        chosen = np.sort(np.random.default_rng(0).permutation(rows)[:count])
        return _matrix([vector for (vector,) in self._where("row", chosen, "vector")], self.about["dimension"])

    def get(self, ids: Sequence[str]) -> dict[str, ItemRecord]:
        """Return item_id → item of the ids that exist."""
        records = self._where("item_id", ids, "row, item_id, payload, vector")
        return {item.item_id: item for item in _stored_items(records)}

    def items_after(self, row: int, batch: int = 1000) -> Iterator[list[ItemRecord]]:
        """Yield the items with a greater row, in batches, in the order of rows."""
        while True:
            with self._lock:
                records = self._db.execute("SELECT * FROM items WHERE row > ? ORDER BY row LIMIT ?", (row, batch))
                items = _stored_items(records.fetchall())
            if not items:
                return
            yield items
            row = items[-1].row

    def rows(self) -> np.ndarray:
        """Return all rows, [N] int64, ascending."""
        with self._lock:
            return np.fromiter((row for (row,) in self._db.execute("SELECT row FROM items ORDER BY row")), np.int64)

    def scroll(self, after: str, limit: int) -> list[tuple[int, str, dict[str, Any]]]:
        """Return (row, item_id, payload) of up to `limit` items with ids greater than `after`, in ascending order."""
        query = "SELECT row, item_id, payload FROM items WHERE item_id > ? ORDER BY item_id LIMIT ?"
        with self._lock:
            records = self._db.execute(query, (after, limit)).fetchall()
        payloads = parse_payloads([payload for _, _, payload in records])
        return [(row, item_id, payload) for (row, item_id, _), payload in zip(records, payloads, strict=True)]

    def _where(self, column: str, values: Sequence[Any] | np.ndarray, columns: str) -> list[Any]:
        records: list[Any] = []
        for start in range(0, len(values), VARIABLES):
            part = [int(v) if isinstance(v, np.integer) else v for v in values[start : start + VARIABLES]]
            marks = ",".join("?" * len(part))
            with self._lock:
                records += self._db.execute(f"SELECT {columns} FROM items WHERE {column} IN ({marks})", part).fetchall()
        return records

    def copy(self, file: Path) -> None:
        """Write a compact copy of the current state; writers need not wait."""
        reader = sqlite3.connect(self.file, timeout=TIMEOUT_S)
        try:
            reader.execute("VACUUM INTO ?", (str(file),))
        finally:
            reader.close()
        copy = sqlite3.connect(file)
        try:
            copy.execute("PRAGMA journal_mode=WAL")  # now, so that opening the copy changes none of its bytes
        finally:
            copy.close()

    def close(self) -> None:
        """Close the file after running reads have ended."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None


def _matrix(blobs: Sequence[bytes], dimension: int) -> np.ndarray:
    return np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), dimension)


def _stored_items(records: Sequence[tuple[int, str, str, bytes]]) -> list[ItemRecord]:
    payloads = parse_payloads([payload for _, _, payload, _ in records])
    return [
        ItemRecord(row, item_id, payload, np.frombuffer(vector, "<f4"))
        for (row, item_id, _, vector), payload in zip(records, payloads, strict=True)
    ]


def parse_payloads(payloads: Sequence[str]) -> list[dict[str, Any]]:
    """Parse JSON objects, all at once, which is faster.

    >>> parse_payloads(['{"price": 3}', "{}"])
    [{'price': 3}, {}]
    """
    return list(json.loads(f"[{','.join(payloads)}]"))
