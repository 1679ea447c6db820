"""The reasoner of the service, as Ray Serve runs it: vLLM, with requests that join and leave between two steps.

Knows the engine and the template; knows nothing of HTTP.
"""

import asyncio
import math
import queue
import threading
import time
import uuid
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from lrem.config import RolloutConfig
from lrem.modeling.model import fingerprint
from lrem.training.rollout import ReasoningResponse
from ray_apps.rollouts.engines import VllmEngine

IDLE_S = 60.0  # that the stepping thread waits for work at a time


def require_model(folder: str, model: str) -> None:
    """A replica that starts later must not come up with other weights than its neighbours.

    Raises:
        ValueError: the folder holds another model by now.
    """
    found = fingerprint(Path(folder))
    if found != model:
        raise ValueError(f"{folder} now holds model {found}, the application serves {model}: start it again")


class EngineRequest(NamedTuple):
    """A request to the engine: its prompt, where the answer goes, None to abort it, and what may end it at once."""

    name: str
    prompt: Any
    params: Any
    answer: Callable[[Any], None] | None
    enough: Callable[[Any], bool] | None


class EngineLoop:
    """An engine in a thread of its own: it steps as long as there is work, and takes in what came between two steps.

    Args:
        make: makes the engine, inside the thread, which it binds its cores to.
    """

    def __init__(self, make: Callable[[], VllmEngine]) -> None:
        self._inbox: queue.SimpleQueue[EngineRequest] = queue.SimpleQueue()
        self._waiting: dict[str, EngineRequest] = {}
        self._made: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        self.aborted = 0  # requests that were taken out for callers who left
        threading.Thread(target=self._run, args=(make,), name="vllm", daemon=True).start()
        made = self._made.get()  # however long a model takes: who deploys waits for ray.start_timeout_s
        if isinstance(made, BaseException):
            raise made
        self.engine: VllmEngine = made

    async def generate(self, prompt: list[int], params: Any, enough: Callable[[Any], bool] | None = None) -> list[Any]:
        """The completions of one prompt; a caller that is cancelled takes its request out of the engine.

        Args:
            enough: told what there is after the first token; if that is enough, it is the answer.

        Raises:
            RuntimeError: the engine has failed, now or earlier.
        """
        if self.failure is not None:
            raise RuntimeError(f"the reasoner's engine failed: {self.failure}")
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def answer(result: Any) -> None:
            loop.call_soon_threadsafe(_settle, future, result)

        name = uuid.uuid4().hex
        self._inbox.put(EngineRequest(name, {"prompt_token_ids": prompt}, params, answer, enough))
        try:
            return list(await future)
        except asyncio.CancelledError:
            self._inbox.put(EngineRequest(name, None, None, None, None))
            raise

    def _run(self, make: Callable[[], VllmEngine]) -> None:
        try:
            made = make()
        except BaseException as error:
            self._made.put(error)
            return
        self._made.put(made)
        engine = made.llm.llm_engine
        try:
            while True:
                self._take_in(engine)
                for output in engine.step() if engine.has_unfinished_requests() else ():
                    self._hand_out(engine, output)
        except BaseException as error:
            self.failure = error
            left = list(self._waiting.values())
            while not self._inbox.empty():
                left.append(self._inbox.get_nowait())
            for asked in left:
                if asked.answer is not None:
                    asked.answer(error)
            raise

    def _add(self, engine: Any, asked: EngineRequest) -> None:
        self._waiting[asked.name] = asked
        try:
            engine.add_request(asked.name, asked.prompt, asked.params)
        except ValueError as error:  # as a prompt that is too long: that request's own fault
            del self._waiting[asked.name]
            if asked.answer is not None:
                asked.answer(error)

    def _hand_out(self, engine: Any, output: Any) -> None:
        asked = self._waiting.get(output.request_id)
        if asked is None or asked.answer is None:
            return
        ended = output.finished
        if not ended and asked.enough is not None and asked.enough(output.outputs):
            engine.abort_request([asked.name])
            ended = True
        if ended:
            del self._waiting[asked.name]
            asked.answer(output.outputs)
        elif asked.enough is not None:
            self._waiting[asked.name] = asked._replace(enough=None)

    def _take_in(self, engine: Any) -> None:
        """Everything that has come; waits for something where there is nothing to step."""
        try:
            idle = not engine.has_unfinished_requests()
            asked = self._inbox.get(timeout=IDLE_S) if idle else self._inbox.get_nowait()
            while True:
                if asked.answer is not None:
                    self._add(engine, asked)
                elif self._waiting.pop(asked.name, None) is not None:
                    engine.abort_request([asked.name])
                    self.aborted += 1
                asked = self._inbox.get_nowait()
        except queue.Empty:
            return


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(RuntimeError(f"the reasoner's engine failed: {result}"))
    else:
        future.set_result(result)


class Reasoner:
    """vLLM over the model folder: queries in, keyword lists out, or how sure the model is to need none."""

    async def __init__(self, folder: str, model: str, config: RolloutConfig) -> None:  # type: ignore[misc]
        require_model(folder, model)
        self.stepper = EngineLoop(lambda: VllmEngine(folder, config, logprobs="raw_logprobs"))
        self.renderer, self.temperature = self.stepper.engine.renderer, config.temperature
        await self.reason(["warm up"], 1, None)  # seconds that no request should wait for

    def check_health(self) -> None:
        """Serve replaces a replica that raises here."""
        if self.stepper.failure is not None:
            raise RuntimeError(f"the reasoner's engine failed: {self.stepper.failure}")

    async def ping(self) -> None:
        """Return if the replica can answer. Raises RuntimeError as `check_health`."""
        self.check_health()

    async def count_aborted(self) -> int:
        """Return how many requests were taken out of the engine because their callers left."""
        return self.stepper.aborted

    async def reason(self, queries: list[str], count: int, think_below: float | None) -> ReasoningResponse:
        """`count` reasonings of each query: the greedy one if it is one, else samples, the same ones each time.

        Args:
            think_below: a query is thought over only where the chance of an empty thought, that `</think>` follows
                `<think>` at once, is below this; None thinks always. Who thinks writes one token at least.
        """
        if think_below is None:
            return ReasoningResponse(await self._think(queries, count), 0.0)
        begun = time.perf_counter()
        if count == 1:
            return await self._decide(queries, think_below)
        chances = await self.chances(queries)
        decided_s = time.perf_counter() - begun
        hard = [query for query, chance in zip(queries, chances, strict=True) if chance < think_below]
        made = iter(await self._think(hard, count))
        return ReasoningResponse([next(made) if chance < think_below else None for chance in chances], decided_s)

    async def _think(self, queries: list[str], count: int) -> list[list[str] | None]:
        asked = (self._generate(q, self._params(q, count, False)) for q in queries)
        return [self._texts(completions) for completions in await asyncio.gather(*asked)]

    async def _decide(self, queries: list[str], think_below: float) -> ReasoningResponse:
        """Greedy reasonings that are ended at their first token where that tells that none is needed."""
        begun, first = time.perf_counter(), 0.0

        def enough(completions: list[Any]) -> bool:
            nonlocal first
            first = time.perf_counter() - begun
            return self._chance(completions) >= think_below

        asked = (self._generate(q, self._params(q, 1, True), enough) for q in queries)
        found = await asyncio.gather(*asked)
        return ReasoningResponse([None if self._chance(c) >= think_below else self._texts(c) for c in found], first)

    async def chances(self, queries: list[str]) -> list[float]:
        """The chance of an empty thought for each query, 0 to 1."""
        params = self._params("", 1, True)
        params.max_tokens = 1
        found = await asyncio.gather(*(self._generate(query, params) for query in queries))
        return [self._chance(completions) for completions in found]

    def _params(self, query: str, count: int, decides: bool) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        stop = [self.renderer.close, self.renderer.emb]
        return SamplingParams(
            n=count,
            temperature=self.temperature if count > 1 else 0.0,
            seed=zlib.crc32(query.encode()) if count > 1 else None,
            max_tokens=self.renderer.template.budget,  # and the close is forced
            min_tokens=1,
            stop_token_ids=stop,
            logit_bias=self.renderer.no_specials(stop),
            ignore_eos=True,
            detokenize=False,
            logprob_token_ids=[self.renderer.close] if decides else None,
            output_kind=RequestOutputKind.CUMULATIVE if decides else RequestOutputKind.FINAL_ONLY,
        )

    def _chance(self, completions: list[Any]) -> float:
        return math.exp(completions[0].logprobs[0][self.renderer.close].logprob)

    def _generate(self, query: str, params: Any, enough: Callable[[Any], bool] | None = None) -> Awaitable[list[Any]]:
        return self.stepper.generate(self.renderer.thinking_prompt(query), params, enough)

    def _texts(self, completions: list[Any]) -> list[str]:
        return [self.renderer.thought(one.token_ids) for one in completions]
