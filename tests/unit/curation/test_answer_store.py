"""Answers are durable: after kill -9, for other processes, and for any text."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lrem.curation.answer_store import AnswerStore
from lrem.errors import DataError

WRITER = """
import sys
from pathlib import Path
from lrem.curation.answer_store import AnswerStore

name = sys.argv[2]
with AnswerStore(Path(sys.argv[1])) as answers:
    for i in range(1_000_000):
        answers.put([(f"{name}{i}.{j}", f"answer {i}.{j} " * 20) for j in range(3)])
        print(i, flush=True)
"""


def test_the_first_answer_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "answers.db"
    with AnswerStore(file) as answers:
        assert len(answers) == 0
        assert answers.get(["a"]) == {}
        answers.put([("a", "one"), ("b", "two\n茶 🍵\x00"), ("a", "three")])
        answers.put([("b", "four")])
        answers.put([])
    with AnswerStore(file) as reopened:
        assert len(reopened) == 2
        assert reopened.get(["a", "unknown", "b", "a"]) == {"a": "one", "b": "two\n茶 🍵\x00"}
        assert reopened.get([]) == {}
        reopened.put([("c", "half \ud83d a pair")])
        assert reopened.get(["c"]) == {"c": "half ? a pair"}


def test_many_keys_at_once(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.db") as answers:
        answers.put((str(i), f"text {i}") for i in range(25_000))
        assert len(answers) == 25_000
        stored = answers.get([str(i) for i in range(0, 50_000, 2)])
        assert stored == {str(i): f"text {i}" for i in range(0, 25_000, 2)}


def test_a_deleted_answer_can_be_stored_again(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.db") as answers:
        answers.put([("a", "one"), ("b", "two")])
        answers.delete(["a", "unknown"])
        assert answers.get(["a", "b"]) == {"b": "two"}
        answers.put([("a", "three")])
        assert answers.get(["a"]) == {"a": "three"}


def test_kill_loses_no_acknowledged_answer(tmp_path: Path) -> None:
    """Two processes write to one file; both are killed in the middle."""
    file, acknowledged = tmp_path / "answers.db", {"a": -1, "b": -1}
    writers = {
        name: subprocess.Popen([sys.executable, "-c", WRITER, str(file), name], stdout=subprocess.PIPE, text=True)
        for name in acknowledged
    }
    for _ in range(60):
        for name, writer in writers.items():
            assert writer.stdout is not None
            acknowledged[name] = int(writer.stdout.readline())
    for name, writer in writers.items():
        os.kill(writer.pid, signal.SIGKILL)
        rest, _ = writer.communicate(timeout=30)
        lines = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged[name] = int(lines[-1]) if lines else acknowledged[name]
    with AnswerStore(file) as answers:
        for name, last in acknowledged.items():
            assert last >= 59
            expected = {f"{name}{i}.{j}": f"answer {i}.{j} " * 20 for i in range(last + 1) for j in range(3)}
            assert answers.get(list(expected)) == expected
        assert len(answers) % 3 == 0  # a put is stored completely or not at all
        answers.put([("after", "all")])
        assert answers.get(["after"]) == {"after": "all"}


def test_a_file_that_is_no_answer_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but long enough to have a header " * 9)
    with pytest.raises(DataError, match=r"text\.db is damaged or not an answer store"):
        AnswerStore(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE answers (something TEXT)")
    other.close()
    with pytest.raises(DataError, match=r"other\.db .*no such column"):
        AnswerStore(tmp_path / "other.db")
    with pytest.raises(DataError, match="cannot be opened"):
        AnswerStore(tmp_path)


def test_a_failed_put_is_an_error_and_stores_nothing(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.db") as answers:
        answers.put([("a", "one")])
        answers._db.execute("PRAGMA max_page_count=8")
        with pytest.raises(DataError, match=r"answers\.db cannot be written .*full"):
            answers.put([(f"k{i}", "x" * 1000) for i in range(100)])
        assert answers.get(["a", "k0"]) == {"a": "one"}
