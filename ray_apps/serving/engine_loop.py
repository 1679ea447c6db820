"""A vLLM engine in its own thread: requests join and leave between two steps."""

import asyncio
import queue
import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ray_apps.rollouts.engines import VllmEngine

if TYPE_CHECKING:  # vLLM is imported in the engine's thread only
    from vllm import CompletionOutput, LLMEngine, RequestOutput, SamplingParams, TokensPrompt

IDLE_S = 60.0  # the longest that the thread waits for a request at a time


class EngineRequest(NamedTuple):
    """A request to the engine: its prompt, and `reply`, which takes the completions; a request without it aborts.

    is_enough: called with the completions after the first token; if it returns True, these are the reply.
    """

    request_id: str
    prompt: "TokensPrompt | None"
    params: "SamplingParams | None"
    reply: "Callable[[list[CompletionOutput] | BaseException], None] | None"
    is_enough: "Callable[[list[CompletionOutput]], bool] | None"


class EngineLoop:
    """Steps an engine in a thread as long as there is work, and admits new requests between two steps.

    Args:
        create: creates the engine, inside the thread, because the engine binds the thread to its cores.
    """

    def __init__(self, create: Callable[[], VllmEngine]) -> None:
        self._inbox: queue.SimpleQueue[EngineRequest] = queue.SimpleQueue()
        self._running: dict[str, EngineRequest] = {}
        self._started: queue.SimpleQueue[VllmEngine | BaseException] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self.aborted = 0  # requests aborted because their callers were cancelled
        threading.Thread(target=self._run, args=(create,), name="vllm", daemon=True).start()
        engine = self._started.get()  # without a deadline: the deployment waits for ray.start_timeout_s
        if isinstance(engine, BaseException):
            raise engine
        self.engine: VllmEngine = engine

    async def generate(
        self,
        prompt: list[int],
        params: "SamplingParams",
        is_enough: "Callable[[list[CompletionOutput]], bool] | None" = None,
    ) -> "list[CompletionOutput]":
        """Return the completions of one prompt. If the caller is cancelled, the engine aborts the request.

        Args:
            is_enough: see `EngineRequest`.

        Raises:
            RuntimeError: the engine has failed, now or earlier.
        """
        if self.failure is not None:
            raise RuntimeError(f"the reasoner's engine failed: {self.failure}")
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def reply(result: "list[CompletionOutput] | BaseException") -> None:
            loop.call_soon_threadsafe(_settle, future, result)

        request_id = uuid.uuid4().hex
        self._inbox.put(EngineRequest(request_id, {"prompt_token_ids": prompt}, params, reply, is_enough))
        try:
            return list(await future)
        except asyncio.CancelledError:
            self._inbox.put(EngineRequest(request_id, None, None, None, None))
            raise

    def _run(self, create: Callable[[], VllmEngine]) -> None:
        try:
            started = create()
        except BaseException as error:
            self._started.put(error)
            return
        self._started.put(started)
        engine = started.llm.llm_engine
        try:
            while True:
                self._admit(engine)
                for output in engine.step() if engine.has_unfinished_requests() else ():
                    self._deliver(engine, output)
        except BaseException as error:
            self._fail(error)
            raise

    def _admit(self, engine: "LLMEngine") -> None:
        """Handle all requests in the inbox; wait for one if the engine has nothing to step."""
        try:
            idle = not engine.has_unfinished_requests()
            request = self._inbox.get(timeout=IDLE_S) if idle else self._inbox.get_nowait()
            while True:
                if request.reply is not None:
                    self._add(engine, request)
                elif self._running.pop(request.request_id, None) is not None:
                    engine.abort_request([request.request_id])
                    self.aborted += 1
                request = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _add(self, engine: "LLMEngine", request: EngineRequest) -> None:
        self._running[request.request_id] = request
        try:
            engine.add_request(request.request_id, request.prompt, request.params)
        except ValueError as error:  # this request's own fault, such as a prompt that is too long
            del self._running[request.request_id]
            if request.reply is not None:
                request.reply(error)

    def _deliver(self, engine: "LLMEngine", output: "RequestOutput") -> None:
        request = self._running.get(output.request_id)
        if request is None or request.reply is None:
            return
        finished = output.finished
        if not finished and request.is_enough is not None and request.is_enough(output.outputs):
            engine.abort_request([request.request_id])
            finished = True
        if finished:
            del self._running[request.request_id]
            request.reply(output.outputs)
        elif request.is_enough is not None:
            self._running[request.request_id] = request._replace(is_enough=None)

    def _fail(self, error: BaseException) -> None:
        """Reply with the error to every request, those in the inbox included."""
        self.failure = error
        pending = list(self._running.values())
        while not self._inbox.empty():
            pending.append(self._inbox.get_nowait())
        for request in pending:
            if request.reply is not None:
                request.reply(error)


def _settle(future: "asyncio.Future[list[CompletionOutput]]", result: "list[CompletionOutput] | BaseException") -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(RuntimeError(f"the reasoner's engine failed: {result}"))
    else:
        future.set_result(result)
