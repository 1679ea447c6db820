"""Requests to a language model, the settings of one at a URL, and a model that fails in every way a server can."""

import email.utils
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from lrem.config import LlmConfig, load_config
from lrem.curation.chat_requests import ChatRequest, request_key
from tests.chat_server import Reply, completion

CONFIG = load_config(None, ["ray.num_cpus=4"])
SECRET = "sk-very-secret"


class FlakyModel:
    """Answers by the first word of a prompt and by whether the prompt is new; counts what it sees."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.times: dict[str, list[float]] = {}
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.concurrent = self.max_concurrent = 0
        self.lock = threading.Lock()

    def reply(self, body: dict[str, Any], authorization: str | None) -> Reply:
        prompt = body["messages"][-1]["content"]
        with self.lock:
            self.calls[prompt] += 1
            self.times.setdefault(prompt, []).append(time.monotonic())
            self.bodies.append(body)
            self.keys.add(authorization)
            self.concurrent += 1
            self.max_concurrent = max(self.max_concurrent, self.concurrent)
        try:
            return self._reply(prompt.split()[0], self.calls[prompt] == 1, prompt)
        finally:
            with self.lock:
                self.concurrent -= 1

    def _reply(self, kind: str, first: bool, prompt: str) -> Reply:
        time.sleep(0.02 if kind != "hangs" or not first else 2.5)
        in_2_s = email.utils.formatdate(time.time() + 2, usegmt=True)
        at_first = {
            "flaky": Reply(500, "out of order"),
            "busy": Reply(429, {"error": {"message": "slow down"}}, {"retry-after": "2"}),
            "loading": Reply(503, {"detail": "not yet"}, {"retry-after": in_2_s}),
            "conflict": Reply(409, ""),
        }
        if first and kind in at_first:
            return at_first[kind]
        always = {
            "refused": Reply(400, {"error": {"message": f"too long for\nthe key {SECRET}"}}),
            "broken": Reply(502, "<html>bad gateway</html>"),
            "odd": Reply(200, {"choices": []}),
            "text": Reply(200, "hello"),
            "silent": Reply(200, completion("  ", "length")),
            "null": Reply(200, completion(None, "content_filter")),
            "forbidden": Reply(401, {"error": {"message": f"Incorrect API key provided: {SECRET}"}}),
            "nowhere": Reply(404, {"detail": "Not Found"}),
            "tomorrow": Reply(429, {"error": {"message": "quota"}}, {"retry-after": "86400"}),
        }
        return always.get(kind, Reply(200, completion(f"answer to {prompt}")))


def at_url(url: str, **settings: Any) -> LlmConfig:
    """Return the settings of a model at a URL: four requests at once, one second each."""
    return LlmConfig(**({"engine": "url", "model": "m", "url": url, "concurrency": 4, "timeout_s": 1.0} | settings))


def requests(llm: LlmConfig, prompts: Iterable[str]) -> Iterator[ChatRequest]:
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        yield ChatRequest(request_key(llm.model or "", messages, llm.temperature, llm.max_tokens), messages)


def key(llm: LlmConfig, prompt: str) -> str:
    return next(requests(llm, [prompt])).key
