"""The answers of language models, kept in one SQLite file so that no request is paid for twice.

When `put` returns, its answers are on disk (write-ahead log, synchronous=FULL). Several processes on one machine may
share the file; SQLite's write-ahead log does not work over a network file system.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from lrem.errors import DataError

BUSY_TIMEOUT_S = 60.0  # wait for another process that writes
KEYS_PER_QUERY = 10_000  # SQLite allows 32,766 variables in a statement
ROWS_PER_TRANSACTION = 1000
SCHEMA = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)"
INSERT_IF_ABSENT = "INSERT INTO answers VALUES (?, ?) ON CONFLICT (key) DO NOTHING"


class AnswerStore:
    """A durable map of request key → answer text. The first answer to a key is kept. Constant memory.

    Raises:
        DataError: the file cannot be opened, or is not an answer store.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(file, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(SCHEMA)
            self._db.execute("SELECT key, text FROM answers LIMIT 1")
        except sqlite3.OperationalError as error:
            raise DataError(
                f"{file} cannot be opened ({error}): check free space, permissions, and that no other program owns it"
            ) from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{file} is damaged or not an answer store ({error}): move it away") from error

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """Return key → text for the keys that have an answer."""
        answers: dict[str, str] = {}
        for start in range(0, len(keys), KEYS_PER_QUERY):
            chunk = list(keys[start : start + KEYS_PER_QUERY])
            marks = ",".join("?" * len(chunk))
            answers.update(self._db.execute(f"SELECT key, text FROM answers WHERE key IN ({marks})", chunk))
        return answers

    def put(self, answers: Iterable[tuple[str, str]]) -> None:
        """Store (key, text) pairs, durable on return; a key that has an answer keeps it.

        An unpaired surrogate, which a JSON answer may contain, becomes `?`, because UTF-8 cannot encode it.

        Raises:
            DataError: the file cannot be written.
        """
        rows = [(key, text.encode(errors="replace").decode()) for key, text in answers]
        try:
            for start in range(0, len(rows), ROWS_PER_TRANSACTION):
                self._insert(rows[start : start + ROWS_PER_TRANSACTION])
        except sqlite3.Error as error:
            raise DataError(f"{self.file} cannot be written ({error}): check free space and permissions") from error

    def _insert(self, rows: list[tuple[str, str]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(INSERT_IF_ABSENT, rows)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite itself rolls back when the disk is full
                self._db.execute("ROLLBACK")
            raise

    def delete(self, keys: Sequence[str]) -> None:
        """Delete answers, so that their requests are sent again."""
        self._db.executemany("DELETE FROM answers WHERE key = ?", ((key,) for key in keys))

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
