"""A real HTTP server for OpenAI's chat schema, and a scripted teacher and judge whose answers a test can foresee."""

import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Protocol

MARKED = re.compile(r"<(query|thoughts|item)>\n(.*?)\n</\1>", re.S)
REWRITE = "Which words, missing in this query,"  # in the prompt of evaluation's baseline
Call = tuple[str, str, str]  # (think, keywords, rewrite or judge; the query; the item's title or "")


class Reply(NamedTuple):
    """An HTTP response; `delivered` is called once it has been sent completely."""

    status: int
    content: object  # text is sent unchanged, anything else as JSON
    headers: Mapping[str, str] = {}
    delivered: Callable[[], None] = lambda: None


class ChatModel(Protocol):
    """What answers the requests of a server."""

    def reply(self, body: dict[str, Any], authorization: str | None) -> Reply:
        """Return the response to the JSON of a request; may be called by several threads at once."""


def completion(text: str | None, finish: str = "stop") -> dict[str, Any]:
    """Return a chat completion in OpenAI's schema."""
    return {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}]}


class Chat:
    """Scripted answers, the calls to refuse with status 400, and counts of all calls.

    Args:
        keywords: query → the answer to the teacher's second question, and to the request for a rewrite.
        grades: (query, title) → the judge's answer.
    """

    def __init__(self, keywords: dict[str, str], grades: dict[tuple[str, str], str]) -> None:
        self.keywords, self.grades = keywords, grades
        self.refused: set[Call] = set()
        self.calls: Counter[Call] = Counter()
        self.answered: Counter[Call] = Counter()  # calls whose answer was delivered
        self.delay_s = 0.0
        self.lock = threading.Lock()

    def reply(self, body: dict[str, Any], authorization: str | None) -> Reply:
        prompt = body["messages"][-1]["content"]
        marked = dict(MARKED.findall(prompt))
        kind = "judge" if "item" in marked else "keywords" if "thoughts" in marked else "think"
        kind = "rewrite" if REWRITE in prompt else kind
        call = (kind, marked["query"], marked.get("item", ""))
        with self.lock:
            self.calls[call] += 1
        time.sleep(self.delay_s)
        if call in self.refused:
            return Reply(400, {"error": {"message": f"not {kind} today"}})
        thought = f"Whoever asks for {call[1]} may want this or that."
        if kind in ("keywords", "rewrite"):
            assert kind == "rewrite" or marked["thoughts"] == thought
            text = self.keywords[call[1]]
        else:
            text = thought if kind == "think" else self.grades.get(call[1:], "0")
        return Reply(200, completion(text), delivered=lambda: self._count_answer(call))

    def _count_answer(self, call: Call) -> None:
        with self.lock:
            self.answered[call] += 1


@contextmanager
def serve(model: ChatModel) -> Iterator[str]:
    """Yield the URL of a server that answers with `model` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            reply = model.reply(body, self.headers["authorization"])
            content = (reply.content if isinstance(reply.content, str) else json.dumps(reply.content)).encode()
            try:
                self.send_response(reply.status if self.path == "/v1/chat/completions" else 418)
                for name, value in {**reply.headers, "content-length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # the client was killed or has timed out
                self.close_connection = True
            else:
                reply.delivered()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *connection: Any) -> None:
            """Print errors as the standard library does, except those of a client that was killed."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(*connection)

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))  # checks for shutdown so often
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
