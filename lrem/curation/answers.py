"""The answers of a language model, kept in one SQLite file so that none is paid for twice.

A call of `put` that has returned is on disk (write-ahead log, synchronous=FULL). Several processes of one machine may
share the file; SQLite's write-ahead log does not work over a network file system. Knows keys and texts; does not know
who is asked.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from lrem.config import LlmConfig
from lrem.errors import DataError

TIMEOUT_S = 60.0  # to wait for another process that writes
VARIABLES = 10_000  # keys of one statement; SQLite takes 32,766
PART = 1000  # answers written in one transaction, or looked up at once
SCHEMA = "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, text TEXT NOT NULL)"
FIRST_STANDS = "INSERT INTO answers VALUES (?, ?) ON CONFLICT (key) DO NOTHING"


class Question(NamedTuple):
    """Chat messages, each with `role` and `content`, and the key of their answer."""

    key: str
    messages: list[dict[str, str]]


def question_key(model: str, messages: list[dict[str, str]], temperature: float, max_tokens: int) -> str:
    """32 hexadecimal digits that stand for everything an answer depends on.

    >>> ask = [{"role": "user", "content": "tea?"}]
    >>> question_key("m", ask, 0, 8) == question_key("m", ask, 0.0, 8) != question_key("m", ask, 0.7, 8)
    True
    """
    told = json.dumps([model, messages, float(temperature), int(max_tokens)], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def question(llm: LlmConfig, messages: list[dict[str, str]]) -> Question:
    """What a language model with these settings is asked."""
    return Question(question_key(llm.model or "", messages, llm.temperature, llm.max_tokens), messages)


class Answers:
    """key → text, open. Of two answers with one key the first stands. Constant memory.

    Raises:
        DataError: the file cannot be opened, or is no such file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(file, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(SCHEMA)
            self._db.execute("SELECT key, text FROM answers LIMIT 1")
        except sqlite3.OperationalError as error:
            raise DataError(f"{file} cannot be opened ({error}): is the disk full, or the file another's?") from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{file} holds no answers, or is damaged ({error}): move it away") from error

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """key → text, of the keys that are answered."""
        found: dict[str, str] = {}
        for start in range(0, len(keys), VARIABLES):
            part = list(keys[start : start + VARIABLES])
            marks = ",".join("?" * len(part))
            found.update(self._db.execute(f"SELECT key, text FROM answers WHERE key IN ({marks})", part))
        return found

    def put(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Keep (key, text) pairs, on disk when this returns; one that has an answer keeps it.

        Half a surrogate pair, as a JSON answer may hold, becomes `?`: it has no UTF-8.

        Raises:
            DataError: the file cannot be written.
        """
        rows = [(key, text.encode(errors="replace").decode()) for key, text in pairs]
        try:
            for start in range(0, len(rows), PART):
                self._write(rows[start : start + PART])
        except sqlite3.Error as error:
            raise DataError(f"{self.file} cannot be written ({error}): is the disk full?") from error

    def _write(self, rows: list[tuple[str, str]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(FIRST_STANDS, rows)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk has rolled it back already
                self._db.execute("ROLLBACK")
            raise

    def drop(self, keys: Sequence[str]) -> None:
        """Forget answers, so that their questions are asked again."""
        self._db.executemany("DELETE FROM answers WHERE key = ?", ((key,) for key in keys))

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Books:
    """Of one run: which questions are open, which have failed, and how many are settled.

    `told` is called with how many questions are settled so far: answered now or before, repeated, or failed.
    """

    def __init__(self, answers: Answers, told: Callable[[int], None] | None) -> None:
        self.answers, self._told = answers, told
        self.failures: dict[str, str] = {}
        self.open: set[str] = set()
        self.settled = 0

    def unasked(self, questions: Iterable[Question]) -> Iterator[Question]:
        """Those that have no answer and were not given out before, each once."""
        source = iter(questions)
        while part := list(islice(source, PART)):
            once = {question.key: question for question in part}
            known = self.answers.get(list(once)).keys() | self.failures.keys() | self.open
            wanted = [question for key, question in once.items() if key not in known]
            self.open.update(question.key for question in wanted)
            self._count(len(part) - len(wanted))
            yield from wanted

    def answered(self, pairs: list[tuple[str, str]]) -> None:
        """Keep answers; durable on return."""
        self.answers.put(pairs)
        self.open.difference_update(key for key, _ in pairs)
        self._count(len(pairs))

    def failed(self, key: str, reason: str) -> None:
        """Note why there is no answer."""
        self.failures[key] = reason
        self.open.discard(key)
        self._count(1)

    def _count(self, more: int) -> None:
        self.settled += more
        if more and self._told is not None:
            self._told(self.settled)
