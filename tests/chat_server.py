"""A real HTTP server that speaks OpenAI's chat schema: a teacher and a judge whose answers a test can foresee."""

import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MARKED = re.compile(r"<(query|thoughts|item)>\n(.*?)\n</\1>", re.S)
REWRITE = "Which words, missing in this query,"  # of evaluation's prompt
Call = tuple[str, str, str]  # think, keywords, rewrite or judge; the query; the item's title, if there is one


class Chat:
    """What is answered, what is refused for now, and how often everything was asked.

    Args:
        keywords: query → the answer to the teacher's second question, and to the question for a rewrite.
        grades: (query, title) → the judge's answer.
    """

    def __init__(self, keywords: dict[str, str], grades: dict[tuple[str, str], str]) -> None:
        self.keywords, self.grades = keywords, grades
        self.refused: set[Call] = set()
        self.calls: Counter[Call] = Counter()
        self.answered: Counter[Call] = Counter()  # of these an answer has been sent whole
        self.delay_s = 0.0
        self.lock = threading.Lock()

    def answer(self, prompt: str) -> tuple[Call, str | None]:
        """What is asked, and what is said to it; None: nothing, for now."""
        said = dict(MARKED.findall(prompt))
        kind = "judge" if "item" in said else "keywords" if "thoughts" in said else "think"
        kind = "rewrite" if REWRITE in prompt else kind
        call = (kind, said["query"], said.get("item", ""))
        with self.lock:
            self.calls[call] += 1
        time.sleep(self.delay_s)
        if call in self.refused:
            return call, None
        if kind == "judge":
            return call, self.grades.get(call[1:], "0")
        if kind == "think":
            return call, f"Whoever asks for {call[1]} may want this or that."
        assert kind == "rewrite" or said["thoughts"] == f"Whoever asks for {call[1]} may want this or that."
        return call, self.keywords[call[1]]


@contextmanager
def serve(chat: Chat) -> Iterator[str]:
    """The address of a server that answers as `chat` does, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            call, said = chat.answer(body["messages"][-1]["content"])
            if said is None:
                sent = json.dumps({"error": {"message": f"not {call[0]} today"}}).encode()
            else:
                message = {"role": "assistant", "content": said}
                sent = json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()
            try:
                self.send_response(400 if said is None else 200)
                self.send_header("content-length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)
            except OSError:  # the caller was killed
                self.close_connection = True
                return
            with chat.lock:
                chat.answered[call] += said is not None

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

        def handle_error(self, *connection: Any) -> None:
            """Of a caller that was killed; anything else the standard library prints."""
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(*connection)

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
