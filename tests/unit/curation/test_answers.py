"""Answers are there once and for all: after kill -9, for other processes, and whatever they hold."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.curation.answer_ledger import LOOKUP_BATCH, AnswerLedger
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import ChatRequest, request_key
from lrem.errors import DataError

ASK = [{"role": "user", "content": "tea?"}]
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


def test_the_first_answer_stands(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "answers.db"
    with AnswerStore(file) as answers:
        assert len(answers) == 0
        assert answers.get(["a"]) == {}
        answers.put([("a", "one"), ("b", "two\n茶 🍵\x00"), ("a", "three")])
        answers.put([("b", "four")])
        answers.put([])
    with AnswerStore(file) as again:
        assert len(again) == 2
        assert again.get(["a", "nobody", "b", "a"]) == {"a": "one", "b": "two\n茶 🍵\x00"}
        assert again.get([]) == {}
        again.put([("c", "half \ud83d a pair")])
        assert again.get(["c"]) == {"c": "half ? a pair"}


def test_many_keys_at_once(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.db") as answers:
        answers.put((str(i), f"text {i}") for i in range(25_000))
        assert len(answers) == 25_000
        found = answers.get([str(i) for i in range(0, 50_000, 2)])
        assert found == {str(i): f"text {i}" for i in range(0, 25_000, 2)}


def test_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
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
            wanted = {f"{name}{i}.{j}": f"answer {i}.{j} " * 20 for i in range(last + 1) for j in range(3)}
            assert answers.get(list(wanted)) == wanted
        assert len(answers) % 3 == 0  # a put is there as a whole or not at all
        answers.put([("after", "all")])
        assert answers.get(["after"]) == {"after": "all"}


def test_what_is_no_file_of_answers_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("no database at all, but long enough to have a header " * 9)
    with pytest.raises(DataError, match="text.db is damaged or not an answer store"):
        AnswerStore(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE answers (something TEXT)")
    other.close()
    with pytest.raises(DataError, match="other.db cannot be opened .*no such column"):
        AnswerStore(tmp_path / "other.db")
    with pytest.raises(DataError, match="cannot be opened"):
        AnswerStore(tmp_path)


def test_a_put_that_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    with AnswerStore(tmp_path / "answers.db") as answers:
        answers.put([("a", "one")])
        answers._db.execute("PRAGMA max_page_count=8")
        with pytest.raises(DataError, match="answers.db cannot be written .*full"):
            answers.put([(f"k{i}", "x" * 1000) for i in range(100)])
        assert answers.get(["a", "k0"]) == {"a": "one"}


@given(st.text(), st.text(), st.floats(0, 2), st.integers(1, 4096))
def test_a_key_depends_on_everything_that_an_answer_does(
    model: str, text: str, temperature: float, max_tokens: int
) -> None:
    def key(**change: object) -> str:
        told = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": temperature}
        return request_key(**(told | {"max_tokens": max_tokens} | change))  # type: ignore[arg-type]

    reordered = [{"content": text, "role": "user"}]
    assert key() == key(messages=reordered)
    assert len(key()) == 32
    others = [
        key(model=model + "x"),
        key(messages=[{"role": "user", "content": text + "x"}]),
        key(messages=[{"role": "system", "content": text}]),
        key(messages=reordered * 2),
        key(temperature=temperature + 0.5),
        key(max_tokens=max_tokens + 1),
    ]
    assert len({key(), *others}) == 7


def test_the_key_of_a_question_never_changes() -> None:
    """Or everything that was paid for would be asked again."""
    assert request_key("m", ASK, 0.7, 512) == "a7d1c54713917623b3f8fc4a739c1e49"


def test_books_give_each_open_question_once(tmp_path: Path) -> None:
    counts: list[int] = []
    with AnswerStore(tmp_path / "answers.db") as answers:
        answers.put([("k3", "known")])
        ledger = AnswerLedger(answers, counts.append)
        names = [f"k{i % 1500}" for i in range(4 * LOOKUP_BATCH)]
        given_out = []
        for question in ledger.unanswered(ChatRequest(name, ASK) for name in names):
            given_out.append(question.key)
            if question.key == "k5":
                ledger.record_failure("k5", "why not")
            elif int(question.key[1:]) % 2:
                ledger.record_answers([(question.key, "text")])
        assert given_out == [f"k{i}" for i in range(1500) if i != 3]
        assert ledger.failures == {"k5": "why not"}
        assert ledger.in_flight == {f"k{i}" for i in range(0, 1500, 2)}
        assert len(answers) == 749
        assert counts == sorted(counts)
        assert ledger.done == counts[-1] == 4 * LOOKUP_BATCH - 750
