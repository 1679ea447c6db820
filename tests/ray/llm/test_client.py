"""Asking at a URL and by vLLM: each question is answered once, failures are named, a killed run goes on."""

import email.utils
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from lrem.config import LlmConfig, load_config
from lrem.curation.answers import Answers, Question, question_key
from lrem.errors import DataError
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from ray_apps.cluster.session import cluster
from ray_apps.llm import client
from tests.conftest import TITLES

CONFIG = load_config(None, ["ray.num_cpus=4"])
SECRET = "sk-very-secret"
ASKER = """
import sys
from pathlib import Path
from lrem.config.loader import load_config
from lrem.curation.answers import Answers, Question, question_key
from lrem.config import LlmConfig
from ray_apps.llm.client import ask

llm = LlmConfig(engine="url", model="m", url=sys.argv[1], concurrency=4)
chats = [[{"role": "user", "content": f"slow {i}"}] for i in range(300)]
with Answers(Path(sys.argv[2])) as answers:
    asked = [Question(question_key("m", chat, llm.temperature, llm.max_tokens), chat) for chat in chats]
    ask(load_config(None, []), llm, asked, answers)
"""


class Model:
    """What a server answers, by the first word of a prompt and by how often it was asked before."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def answer(self, body: dict[str, Any], key: str | None) -> tuple[int, dict[str, str], Any]:
        """(status, headers, JSON or text)."""
        prompt = body["messages"][-1]["content"]
        with self.lock:
            self.calls[prompt] += 1
            self.times.setdefault(prompt, []).append(time.monotonic())
            self.bodies.append(body)
            self.keys.add(key)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return self._answer(prompt.split()[0], self.calls[prompt] == 1, prompt)
        finally:
            with self.lock:
                self.at_once -= 1

    def _answer(self, kind: str, first: bool, prompt: str) -> tuple[int, dict[str, str], Any]:
        time.sleep(0.02 if kind != "hangs" or not first else 2.5)
        in_2_s = email.utils.formatdate(time.time() + 2, usegmt=True)
        special = {
            "flaky": (500, {}, "out of order"),
            "busy": (429, {"retry-after": "2"}, {"error": {"message": "slow down"}}),
            "loading": (503, {"retry-after": in_2_s}, {"detail": "not yet"}),
            "conflict": (409, {}, ""),
        }
        if first and kind in special:
            return special[kind]
        always = {
            "refused": (400, {}, {"error": {"message": f"too long for\nthe key {SECRET}"}}),
            "broken": (502, {}, "<html>bad gateway</html>"),
            "odd": (200, {}, {"choices": []}),
            "text": (200, {}, "hello"),
            "silent": (200, {}, completion("  ", "length")),
            "null": (200, {}, completion(None, "content_filter")),
            "forbidden": (401, {}, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}),
            "nowhere": (404, {}, {"detail": "Not Found"}),
            "tomorrow": (429, {"retry-after": "86400"}, {"error": {"message": "quota"}}),
        }
        return always.get(kind, (200, {}, completion(f"answer to {prompt}")))


def completion(text: str | None, finish: str = "stop") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def url(model: Model) -> Iterator[str]:
    """A real HTTP server in threads."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers, said = model.answer(body, self.headers["authorization"])
            sent = (said if isinstance(said, str) else json.dumps(said)).encode()
            try:
                self.send_response(status if self.path == "/v1/chat/completions" else 418)
                for name, value in {**headers, "content-length": str(len(sent))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)
            except OSError:  # the caller was killed, or has lost its patience
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    with Answers(tmp_path / "answers.db") as made:
        yield made


def at(url: str, **change: Any) -> LlmConfig:
    return LlmConfig(**({"engine": "url", "model": "m", "url": url, "concurrency": 4, "timeout_s": 1.0} | change))


def questions(llm: LlmConfig, prompts: Iterable[str]) -> Iterator[Question]:
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        yield Question(question_key(llm.model or "", messages, llm.temperature, llm.max_tokens), messages)


def key(llm: LlmConfig, prompt: str) -> str:
    return next(questions(llm, [prompt])).key


def test_every_question_is_answered_once(
    url: str, model: Model, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-broken as servers are; what fails for a while is asked again, what fails for good is named."""
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    llm = at(url + "/", key_variable="MY_KEY", retries=2, temperature=0.5, max_tokens=9)
    plain = [f"plain {i} “ä” \ud83d" for i in range(40)]
    once = ["flaky 1", "busy 1", "loading 1", "conflict 1", "hangs 1"]
    failing = {
        "refused 1": r"^400: too long for the key \*\*\*$",
        "broken 1": "^502: <html>bad gateway</html>$",
        "odd 1": "no chat completion",
        "text 1": "no chat completion: hello",
        "silent 1": "empty .finish_reason length",
        "null 1": "empty .finish_reason content_filter",
    }
    told: list[int] = []
    prompts = [*plain[:20], *once, *failing, *plain, "flaky 1", "refused 1"]
    failures = client.ask(CONFIG, llm, questions(llm, prompts), answers, told.append)
    for prompt in [*plain, *once]:
        seen = prompt.encode(errors="replace").decode()
        assert answers.get([key(llm, prompt)]) == {key(llm, prompt): f"answer to {seen}"}
        assert model.calls[prompt] == 1 + (prompt in once)
    assert failures.keys() == {key(llm, prompt) for prompt in failing}
    for prompt, reason in failing.items():
        assert model.calls[prompt] == (3 if prompt.startswith("broken") else 1)
        assert re.search(reason, failures[key(llm, prompt)])
    assert told == sorted(told)
    assert told[-1] == len(prompts)
    assert model.most_at_once <= 4
    assert model.keys == {f"Bearer {SECRET}"}
    assert all({"model", "messages", "temperature", "max_tokens"} == body.keys() for body in model.bodies)
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in model.bodies} == {("m", 0.5, 9)}
    for prompt in ("busy 1", "loading 1"):
        first, second = model.times[prompt]
        assert second - first >= 0.9  # a date has whole seconds: of the 2 s one may be gone already


def test_nobody_asks_during_a_pause(url: str, model: Model, answers: Answers) -> None:
    llm = at(url)
    prompts = ["busy 1", *(f"plain {i}" for i in range(150))]
    assert client.ask(CONFIG, llm, questions(llm, prompts), answers) == {}
    asked = sorted(moment - model.times["busy 1"][0] for moments in model.times.values() for moment in moments)
    assert [moment for moment in asked if 0.3 < moment < 1.95] == []
    assert asked[-1] > 1.95


def test_what_is_there_is_not_asked(url: str, model: Model, answers: Answers) -> None:
    llm = at(url)
    answers.put([(key(llm, "plain 1"), "known before")])
    told: list[int] = []
    for _ in range(2):
        failures = client.ask(CONFIG, llm, questions(llm, ["plain 1", "plain 2", "refused 1"]), answers, told.append)
        assert failures.keys() == {key(llm, "refused 1")}
    assert model.calls == {"plain 2": 1, "refused 1": 2}
    assert answers.get([key(llm, "plain 1")]) == {key(llm, "plain 1"): "known before"}
    assert told.count(3) == 2
    assert client.ask(CONFIG, llm, [], answers) == {}


def test_a_killed_run_asks_only_what_is_unanswered(url: str, model: Model, tmp_path: Path) -> None:
    file = tmp_path / "answers.db"
    command = [sys.executable, "-c", ASKER, url, str(file)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}) as process:
        deadline = time.monotonic() + 120
        while sum(model.calls.values()) < 100 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.5)  # what is under way ends at the server
    before = model.calls.copy()
    assert 100 <= sum(before.values()) < 300
    llm = at(url)
    names = [f"slow {i}" for i in range(300)]
    with Answers(file) as answers:
        received = answers.get([key(llm, name) for name in names])
        assert sum(before.values()) - llm.concurrency <= len(received) <= sum(before.values())
        assert client.ask(CONFIG, llm, questions(llm, names), answers) == {}
        assert len(answers) == 300
    assert all(model.calls[name] == 1 for name in names if key(llm, name) in received)
    assert {name for name in names if model.calls[name] != 1} <= set(before)
    assert sum(model.calls.values()) == 300 + sum(before.values()) - len(received)


def test_a_rejected_key_ends_the_run(url: str, model: Model, answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = at(url, key_variable="MY_KEY")
    prompts = [f"forbidden {i}" for i in range(50)]
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(DataError, match=r"answered 401: .* the key in \$MY_KEY is not set"):
        client.ask(CONFIG, llm, questions(llm, prompts), answers)
    monkeypatch.setenv("MY_KEY", SECRET)
    with pytest.raises(DataError, match=r"provided: \*\*\*; the key in \$MY_KEY was refused") as caught:
        client.ask(CONFIG, llm, questions(llm, prompts), answers)
    assert SECRET not in str(caught.value)
    assert sum(model.calls.values()) <= 2 * llm.concurrency


def test_nobody_there_is_a_connection_error(answers: Answers) -> None:
    with socket.socket() as deaf:  # its port is its own, but it does not listen
        deaf.bind(("127.0.0.1", 0))
        _nobody_there(at(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1", retries=1), answers)


def _nobody_there(llm: LlmConfig, answers: Answers) -> None:
    started, taken = time.monotonic(), []

    def many() -> Iterator[str]:
        for i in range(1_000_000):
            taken.append(i)
            yield f"plain {i}"

    with pytest.raises(ConnectionError, match=f"no answer from {llm.url}/chat/completions"):
        client.ask(CONFIG, llm, questions(llm, many()), answers)
    assert time.monotonic() - started < 10
    assert len(taken) == 1000  # one look at the answers; the rest was never read


def test_a_server_that_serves_something_else_is_a_connection_error(url: str, model: Model, answers: Answers) -> None:
    llm = at(url)
    with pytest.raises(ConnectionError, match="answered 404: Not Found; check `url` and `model`"):
        client.ask(CONFIG, llm, questions(llm, [f"nowhere {i}" for i in range(50)]), answers)
    assert sum(model.calls.values()) <= llm.concurrency
    assert client.ask(CONFIG, at(url, concurrency=1), questions(llm, ["plain 1", "nowhere 1"]), answers) == {
        key(llm, "nowhere 1"): "404: Not Found"
    }


def test_a_server_that_breaks_down_ends_the_run(url: str, model: Model, answers: Answers) -> None:
    llm = at(url, retries=0)
    prompts = ["plain 1", *(f"broken {i}" for i in range(500))]
    with pytest.raises(ConnectionError, match="left 20 questions in a row without an answer, the last with 502"):
        client.ask(CONFIG, llm, questions(llm, prompts), answers)
    assert len(answers) == 1
    mixed = [f"{kind} {i}" for i in range(60) for kind in ("broken", "plain")]
    assert len(client.ask(CONFIG, llm, questions(llm, mixed), answers)) == 60


def test_a_pause_of_a_day_ends_the_run(url: str, answers: Answers) -> None:
    llm = at(url)
    with pytest.raises(ConnectionError, match="wants a pause of 86400 s: run this again then"):
        client.ask(CONFIG, llm, questions(llm, ["plain 1", "tomorrow 1"]), answers)


def test_settings_that_are_missing_are_named(answers: Answers, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="set its `model`"):
        client.ask(CONFIG, LlmConfig(), [], answers)
    with pytest.raises(DataError, match="'localhost:8000/v1' is no address"):
        client.ask(CONFIG, at("localhost:8000/v1"), [], answers)
    gone = LlmConfig(model=str(tmp_path / "gone"))
    with pytest.raises(DataError, match="the tokenizer of .*gone cannot be loaded"):
        client.ask(CONFIG, gone, questions(gone, ["plain 1"]), answers)


def test_an_error_of_the_questions_comes_through(url: str, answers: Answers) -> None:
    def breaking(llm: LlmConfig) -> Iterator[Question]:
        yield from questions(llm, ["plain 1"])
        raise DataError("queries.parquet: row 2 has no query")

    with pytest.raises(DataError, match="row 2 has no query"):
        client.ask(CONFIG, at(url), breaking(at(url)), answers)


CHATML = (
    "{% for m in messages %}<query>{{ m['role'] }} {{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<item>{% endif %}"
)


def test_a_prompt_is_made_by_the_models_template_or_of_plain_lines() -> None:
    tokenizer = train_tokenizer([f" {title}" for title in TITLES], 400)
    messages = [{"role": "system", "content": "red"}, {"role": "user", "content": "blue coat"}]
    tokenizer.chat_template = None
    assert tokenizer.decode(client.prompt(messages, tokenizer)) == "system: red\nuser: blue coat\nassistant:"
    tokenizer.chat_template = CHATML
    ids = client.prompt(messages, tokenizer)
    assert tokenizer.decode(ids) == "<query>system red<eos><query>user blue coat<eos><item>"
    assert ids.count(tokenizer.eos_token_id) == 2


@pytest.fixture(scope="module")
def talkative(tiny: ReasoningEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Larger random weights, or the model would say the same to everything."""
    state = {name: 10 * w if "proj" in name else w for name, w in tiny.lm.state_dict().items()}
    tiny.save(folder := tmp_path_factory.mktemp("talkative") / "model", state)
    return folder


def greedy(folder: Path, questions: list[Question], length: int) -> dict[str, str]:
    """What transformers answers; half a character at the end is left out, as vLLM does."""
    model, said = ReasoningEmbedder.load(folder), {}
    for question in questions:
        ids = torch.tensor([client.prompt(question.messages, model.tokenizer)])
        made = model.lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
        text = str(model.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
        said[question.key] = text.rstrip("\ufffd")
    return said


@pytest.mark.slow
def test_vllm_answers_as_transformers_does(talkative: Path, answers: Answers) -> None:
    llm = LlmConfig(model=str(talkative), dtype="float32", max_model_len=64, max_tokens=8, batch_size=2)
    short = list(questions(llm, TITLES[:7]))
    [long] = questions(llm, ["red wool coat " * 60])
    answers.put([(short[3].key, "known before")])
    told: list[int] = []
    with cluster(CONFIG):
        failures = client.ask(CONFIG, llm, [*short, long, *short], answers, told.append)
    assert failures.keys() == {long.key}
    assert re.search("maximum context length is 64 tokens", failures[long.key])
    wanted = greedy(talkative, short, 8)
    assert len(set(wanted.values())) == 7
    found = answers.get(list(wanted))
    assert found.pop(short[3].key) == "known before"
    assert {key: text.rstrip("\ufffd") for key, text in found.items()} | {short[3].key: wanted[short[3].key]} == wanted
    assert told[-1] == 15
    assert len(told) > 3  # batch after batch, not all at the end
    gone = llm.model_copy(update={"model": "/nowhere"})
    assert client.ask(CONFIG, gone, short, answers) == {}  # asks nothing, so needs neither the model nor Ray


@pytest.mark.slow
def test_vllm_that_gives_no_answer_is_not_waited_for(talkative: Path, answers: Answers) -> None:
    llm = LlmConfig(model=str(talkative), dtype="float32", max_model_len=64, max_tokens=8, timeout_s=0.01)
    config = load_config(None, ["ray.num_cpus=4", "ray.start_timeout_s=1"])
    started = time.monotonic()
    said = r"no answer within 1.08 s .the first answers: ray.start_timeout_s \+ 8 × timeout_s"
    with pytest.raises(TimeoutError, match=said), cluster(config):
        client.ask(config, llm, questions(llm, ["red coat"]), answers)
    assert time.monotonic() - started < 120
    time.sleep(3)
    assert not ray.is_initialized(), "something went on asking Ray, which started a Ray of its own for it"
