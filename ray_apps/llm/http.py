"""Chat completions from an OpenAI-compatible server: concurrent requests, retries with backoff, Retry-After.

A request is retried after a timeout, a lost connection, or a status that may pass (408, 409, 425, 429, 5xx); any other
error is final. The run ends if the server cannot be reached, rejects the key, serves something else at this URL,
demands a long pause, or fails many requests in a row.
"""

import asyncio
import email.utils
import json
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime

import httpx

from lrem.config import LlmConfig
from lrem.curation.answer_ledger import AnswerLedger
from lrem.curation.chat_requests import ChatRequest
from lrem.errors import DataError
from ray_apps.cluster.proxies import open_client
from ray_apps.llm.failure_reason import failure_reason

CONNECT_TIMEOUT_S = 10.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
MAX_PAUSE_S = 600.0  # a server that demands a longer pause ends the run
RETRYABLE = {408, 409, 425, 429}  # and every status from 500 on
WRONG_ADDRESS = {301, 302, 303, 307, 308, 404, 405}  # unless the server has answered a request before
MAX_CONSECUTIVE_FAILURES = 20  # or twice the concurrency, if that is more


async def ask_server(llm: LlmConfig, ledger: AnswerLedger, requests: Iterable[ChatRequest]) -> None:
    """Send every unanswered request to `llm.url`, at most `llm.concurrency` at a time.

    Raises:
        DataError: the URL is invalid, or the server rejects the key.
        ConnectionError: the server cannot be reached, serves something else, or keeps failing.
    """
    if llm.url is None or httpx.URL(llm.url).scheme not in ("http", "https"):
        raise DataError(f"'{llm.url}' is not the URL of a language model: set its `url`, e.g. http://host:8000/v1")
    key = os.environ.get(llm.key_variable, "").strip()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    limits = httpx.Limits(max_connections=llm.concurrency, max_keepalive_connections=llm.concurrency)
    timeout = httpx.Timeout(None, connect=min(CONNECT_TIMEOUT_S, llm.timeout_s))  # `_send` limits the whole request
    async with open_client(httpx.AsyncClient, llm.url, headers=headers, limits=limits, timeout=timeout) as client:
        endpoint = ChatEndpoint(client, llm, key, ledger)
        unanswered = ledger.unanswered(requests)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(llm.concurrency):
                    group.create_task(endpoint.work(unanswered))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others are cancellations caused by the first


class _RejectedError(Exception):
    """The server will not answer this request, however often it is sent."""


class _TemporaryError(Exception):
    """The request may succeed later; `retry_after` is the wait in seconds that the server demands, 0 for none."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class ChatEndpoint:
    """One chat-completions URL, with the retries, pauses and failure count that all its workers share."""

    def __init__(self, client: httpx.AsyncClient, llm: LlmConfig, key: str, ledger: AnswerLedger) -> None:
        self.client, self.llm, self.key, self.ledger = client, llm, key, ledger
        self.url = f"{(llm.url or '').rstrip('/')}/chat/completions"
        self.reached = False  # the server took a connection
        self.accepted = False  # the server answered a request with status 200
        self.consecutive_failures = 0
        self.paused_until = 0.0  # on the event loop's clock

    async def work(self, requests: Iterator[ChatRequest]) -> None:
        """Settle one request after another; all workers share the iterator."""
        for request in requests:
            await self._settle(request)

    async def _settle(self, request: ChatRequest) -> None:
        """Record the answer or the failure of one request, after at most `llm.retries` retries."""
        for attempt in range(self.llm.retries + 1):
            await self._wait_for_pause()
            try:
                text = await self._send(request)
            except _RejectedError as error:
                self.consecutive_failures = 0
                return self.ledger.record_failure(request.key, str(error))
            except _TemporaryError as error:
                reason = str(error)
                self._pause(error.retry_after)
                if attempt < self.llm.retries:
                    backoff = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2**attempt)
                    await asyncio.sleep(random.uniform(0.5, 1.0) * backoff)
            else:
                self.consecutive_failures = 0
                return self.ledger.record_answers([(request.key, text)])
        return self._give_up(request, reason)

    def _give_up(self, request: ChatRequest, reason: str) -> None:
        """Record a request whose retries are used up; end the run if the server is at fault.

        Raises:
            ConnectionError: the server was never reached, or has failed many requests in a row.
        """
        self.ledger.record_failure(request.key, reason)
        self.consecutive_failures += 1
        if not self.reached:
            raise ConnectionError(f"no answer from {self.url} ({reason}): check `url` and that the server runs")
        if self.consecutive_failures >= max(MAX_CONSECUTIVE_FAILURES, 2 * self.llm.concurrency):
            raise ConnectionError(
                f"{self.url} failed {self.consecutive_failures} requests in a row, the last with {reason}: check the "
                "server, or raise timeout_s or retries, and rerun (answers are saved)"
            )

    async def _send(self, request: ChatRequest) -> str:
        """Send one request and return the answer's text.

        Raises:
            _RejectedError, _TemporaryError: for this request.
            DataError, ConnectionError: for the run.
        """
        body = {
            "model": self.llm.model,
            "messages": request.messages,
            "temperature": self.llm.temperature,
            "max_tokens": self.llm.max_tokens,
        }
        try:
            async with asyncio.timeout(self.llm.timeout_s):
                response = await self.client.post(self.url, content=json.dumps(body))
        except TimeoutError:
            self.reached = True  # it took the connection
            raise _TemporaryError(f"no answer within timeout_s={self.llm.timeout_s:g} s") from None
        except httpx.RequestError as error:
            raise _TemporaryError(f"{type(error).__name__}: {error}") from None
        self.reached = True
        return self._read(response)

    def _read(self, response: httpx.Response) -> str:
        """Return the answer's text, or raise what the status means (see `_send`)."""
        status = response.status_code
        if status == 200:
            self.accepted = True
            return _content(response)
        message = f"{status}: {self._error_message(response)}"
        if status in (401, 403):
            problem = "was rejected" if self.key else "is not set"
            raise DataError(f"{self.url} answered {message}; the key in ${self.llm.key_variable} {problem}: correct it")
        if status in WRONG_ADDRESS and not self.accepted:
            raise ConnectionError(f"{self.url} answered {message}; check `url` and `model`")
        if status in RETRYABLE or status >= 500:
            raise _TemporaryError(message, _retry_after(response) if status in (429, 503) else 0.0)
        raise _RejectedError(message)

    def _error_message(self, response: httpx.Response) -> str:
        """Return the server's message with the key masked: some servers repeat the key they were sent."""
        try:
            content = response.json()
            content = content.get("error", content.get("detail", content))
            content = content.get("message", content) if isinstance(content, dict) else content
        except (ValueError, AttributeError):
            content = response.text
        text = " ".join(str(content).split())
        return failure_reason(text.replace(self.key, "***") if self.key else text)

    def _pause(self, seconds: float) -> None:
        """Pause all workers for `seconds`."""
        if seconds > MAX_PAUSE_S:
            raise ConnectionError(f"{self.url} sent Retry-After {seconds:.0f} s; rerun later (answers are saved)")
        self.paused_until = max(self.paused_until, asyncio.get_running_loop().time() + seconds)

    async def _wait_for_pause(self) -> None:
        while (remaining := self.paused_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(remaining + random.uniform(0.0, min(1.0, remaining)))  # not all at the same moment


def _content(response: httpx.Response) -> str:
    """Return the text of a chat completion; raise `_RejectedError` if there is none."""
    try:
        choice = response.json()["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _RejectedError(f"not a chat completion: {failure_reason(response.text)}") from None
    if not isinstance(text, str) or not text.strip():
        raise _RejectedError(f"the answer is empty (finish_reason {finish})")
    return text


def _retry_after(response: httpx.Response) -> float:
    """Return the seconds of the Retry-After header, which holds seconds or a date; 0 without one."""
    value = response.headers.get("retry-after", "").strip()
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0
