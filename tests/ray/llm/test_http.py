"""The HTTP client: each request is answered once, failures are named, and a killed run resumes."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrem.config import LlmConfig
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import ChatRequest
from lrem.errors import DataError
from ray_apps.llm.client import ask_model
from tests.ray.llm.helpers import CONFIG, SECRET, FlakyModel, at_url, key, requests

KILLED_RUN = """
import sys
from pathlib import Path
from lrem.curation.answer_store import AnswerStore
from ray_apps.llm.client import ask_model
from tests.ray.llm.helpers import CONFIG, at_url, requests

llm = at_url(sys.argv[1])
with AnswerStore(Path(sys.argv[2])) as answers:
    ask_model(CONFIG, llm, requests(llm, [f"slow {i}" for i in range(300)]), answers)
"""


def test_each_request_is_answered_once_by_a_half_broken_server(
    url: str, model: FlakyModel, answers: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary failures are retried; permanent ones are reported with their reason."""
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    llm = at_url(url + "/", key_variable="MY_KEY", retries=2, temperature=0.5, max_tokens=9)
    plain = [f"plain {i} “ä” \ud83d" for i in range(40)]
    retried = ["flaky 1", "busy 1", "loading 1", "conflict 1", "hangs 1"]
    failing = {
        "refused 1": r"^400: too long for the key \*\*\*$",
        "broken 1": "^502: <html>bad gateway</html>$",
        "odd 1": "chat completion",
        "text 1": "chat completion: hello",
        "silent 1": "empty .finish_reason length",
        "null 1": "empty .finish_reason content_filter",
    }
    progress: list[int] = []
    prompts = [*plain[:20], *retried, *failing, *plain, "flaky 1", "refused 1"]
    failures = ask_model(CONFIG, llm, requests(llm, prompts), answers, progress.append)
    for prompt in [*plain, *retried]:
        sent = prompt.encode(errors="replace").decode()
        assert answers.get([key(llm, prompt)]) == {key(llm, prompt): f"answer to {sent}"}
        assert model.calls[prompt] == 1 + (prompt in retried)
    assert failures.keys() == {key(llm, prompt) for prompt in failing}
    for prompt, reason in failing.items():
        assert model.calls[prompt] == (3 if prompt.startswith("broken") else 1)
        assert re.search(reason, failures[key(llm, prompt)])
    assert progress == sorted(progress)
    assert progress[-1] == len(prompts)
    assert model.max_concurrent <= 4
    assert model.keys == {f"Bearer {SECRET}"}
    assert all({"model", "messages", "temperature", "max_tokens"} == body.keys() for body in model.bodies)
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in model.bodies} == {("m", 0.5, 9)}
    for prompt in ("busy 1", "loading 1"):
        first, second = model.times[prompt]
        assert second - first >= 0.9  # a date has whole seconds: of the 2 s almost one may have passed already


def test_no_worker_sends_requests_during_a_pause(url: str, model: FlakyModel, answers: AnswerStore) -> None:
    llm = at_url(url)
    prompts = ["busy 1", *(f"plain {i}" for i in range(150))]
    assert ask_model(CONFIG, llm, requests(llm, prompts), answers) == {}
    moments = sorted(moment - model.times["busy 1"][0] for times in model.times.values() for moment in times)
    assert [moment for moment in moments if 0.3 < moment < 1.95] == []
    assert moments[-1] > 1.95


def test_saved_answers_are_not_requested_again(url: str, model: FlakyModel, answers: AnswerStore) -> None:
    llm = at_url(url)
    answers.put([(key(llm, "plain 1"), "known before")])
    progress: list[int] = []
    for _ in range(2):
        batch = requests(llm, ["plain 1", "plain 2", "refused 1"])
        failures = ask_model(CONFIG, llm, batch, answers, progress.append)
        assert failures.keys() == {key(llm, "refused 1")}
    assert model.calls == {"plain 2": 1, "refused 1": 2}
    assert answers.get([key(llm, "plain 1")]) == {key(llm, "plain 1"): "known before"}
    assert progress.count(3) == 2
    assert ask_model(CONFIG, llm, [], answers) == {}


def test_a_killed_run_sends_only_the_unanswered_requests(url: str, model: FlakyModel, tmp_path: Path) -> None:
    file = tmp_path / "answers.db"
    command = [sys.executable, "-c", KILLED_RUN, url, str(file)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}) as process:
        deadline = time.monotonic() + 120
        while sum(model.calls.values()) < 100 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.5)  # the server finishes the requests in flight
    before = model.calls.copy()
    assert 100 <= sum(before.values()) < 300
    llm = at_url(url)
    prompts = [f"slow {i}" for i in range(300)]
    with AnswerStore(file) as answers:
        saved = answers.get([key(llm, prompt) for prompt in prompts])
        assert sum(before.values()) - llm.concurrency <= len(saved) <= sum(before.values())
        assert ask_model(CONFIG, llm, requests(llm, prompts), answers) == {}
        assert len(answers) == 300
    assert all(model.calls[prompt] == 1 for prompt in prompts if key(llm, prompt) in saved)
    assert {prompt for prompt in prompts if model.calls[prompt] != 1} <= set(before)
    assert sum(model.calls.values()) == 300 + sum(before.values()) - len(saved)


def test_a_rejected_key_ends_the_run_and_is_not_repeated(
    url: str, model: FlakyModel, answers: AnswerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = at_url(url, key_variable="MY_KEY")
    prompts = [f"forbidden {i}" for i in range(50)]
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(DataError, match=r"401: .*\$MY_KEY is not set"):
        ask_model(CONFIG, llm, requests(llm, prompts), answers)
    monkeypatch.setenv("MY_KEY", SECRET)
    with pytest.raises(DataError, match=r"401: .*provided: \*\*\*.*\$MY_KEY was rejected") as caught:
        ask_model(CONFIG, llm, requests(llm, prompts), answers)
    assert SECRET not in str(caught.value)
    assert sum(model.calls.values()) <= 2 * llm.concurrency


def test_an_unreachable_server_is_a_connection_error(answers: AnswerStore) -> None:
    """It ends the run after one look-up of saved answers; the other requests are never read."""
    read: list[int] = []

    def prompts() -> Iterator[str]:
        for i in range(1_000_000):
            read.append(i)
            yield f"plain {i}"

    with socket.socket() as bound:  # reserves a port on which nothing listens
        bound.bind(("127.0.0.1", 0))
        llm, started = at_url(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", retries=1), time.monotonic()
        with pytest.raises(ConnectionError, match=f"{llm.url}/chat/completions"):
            ask_model(CONFIG, llm, requests(llm, prompts()), answers)
    assert time.monotonic() - started < 10
    assert len(read) == 1000


def test_a_server_of_something_else_is_a_connection_error(url: str, model: FlakyModel, answers: AnswerStore) -> None:
    llm = at_url(url)
    with pytest.raises(ConnectionError, match=r"404: Not Found.*`url`"):
        ask_model(CONFIG, llm, requests(llm, [f"nowhere {i}" for i in range(50)]), answers)
    assert sum(model.calls.values()) <= llm.concurrency
    one_worker = at_url(url, concurrency=1)
    assert ask_model(CONFIG, one_worker, requests(llm, ["plain 1", "nowhere 1"]), answers) == {
        key(llm, "nowhere 1"): "404: Not Found"
    }


def test_a_server_that_breaks_down_ends_the_run(url: str, answers: AnswerStore) -> None:
    llm = at_url(url, retries=0)
    prompts = ["plain 1", *(f"broken {i}" for i in range(500))]
    with pytest.raises(ConnectionError, match=r"20 requests in a row.*502"):
        ask_model(CONFIG, llm, requests(llm, prompts), answers)
    assert len(answers) == 1
    mixed = [f"{kind} {i}" for i in range(60) for kind in ("broken", "plain")]
    assert len(ask_model(CONFIG, llm, requests(llm, mixed), answers)) == 60


def test_a_pause_of_a_day_ends_the_run(url: str, answers: AnswerStore) -> None:
    llm = at_url(url)
    with pytest.raises(ConnectionError, match="Retry-After 86400 s"):
        ask_model(CONFIG, llm, requests(llm, ["plain 1", "tomorrow 1"]), answers)


def test_missing_settings_are_named(answers: AnswerStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`model`"):
        ask_model(CONFIG, LlmConfig(), [], answers)
    with pytest.raises(DataError, match=r"'localhost:8000/v1'.*`url`"):
        ask_model(CONFIG, at_url("localhost:8000/v1"), [], answers)
    gone = LlmConfig(model=str(tmp_path / "gone"))
    with pytest.raises(DataError, match="tokenizer of .*gone"):
        ask_model(CONFIG, gone, requests(gone, ["plain 1"]), answers)


def test_an_error_of_the_requests_propagates(url: str, answers: AnswerStore) -> None:
    def breaking(llm: LlmConfig) -> Iterator[ChatRequest]:
        yield from requests(llm, ["plain 1"])
        raise DataError("queries.parquet: row 2 has no query")

    with pytest.raises(DataError, match="row 2 has no query"):
        ask_model(CONFIG, at_url(url), breaking(at_url(url)), answers)
