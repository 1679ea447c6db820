"""The reasoner of the service, as Ray Serve runs it: vLLM, with requests that join and leave between two steps.

Knows the engine and the template; knows nothing of HTTP.
"""

import asyncio
import math
import queue
import threading
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lrem.model import fingerprint
from lrem.settings import RolloutConfig
from ray_apps.engines import VllmEngine

ONE_MORE_S = 60.0  # the longest that the stepping thread sleeps without work; it only looks whether it should end


def require_model(folder: str, model: str) -> None:
    """A replica that starts later must not come up with other weights than its neighbours.

    Raises:
        ValueError: the folder holds another model by now.
    """
    found = fingerprint(Path(folder))
    if found != model:
        raise ValueError(f"{folder} now holds model {found}, the application serves {model}: start it again")


class Asked(NamedTuple):
    """A request to the engine: its prompt, None to abort it, and where the answer goes."""

    name: str
    prompt: Any
    params: Any
    answer: Callable[[Any], None] | None


class Stepper:
    """An engine in a thread of its own: it steps as long as there is work, and takes in what came between two steps.

    Args:
        make: makes the engine, inside the thread, which it binds its cores to.
    """

    def __init__(self, make: Callable[[], VllmEngine]) -> None:
        self._inbox: queue.SimpleQueue[Asked] = queue.SimpleQueue()
        self._waiting: dict[str, Callable[[Any], None]] = {}
        self._made: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.failure: BaseException | None = None
        threading.Thread(target=self._run, args=(make,), name="vllm", daemon=True).start()
        made = self._made.get()
        if isinstance(made, BaseException):
            raise made
        self.engine: VllmEngine = made

    async def generate(self, prompt: list[int], params: Any) -> list[Any]:
        """The finished completions of one prompt; a caller that is cancelled takes its request out of the engine.

        Raises:
            RuntimeError: the engine has failed, now or earlier.
        """
        if self.failure is not None:
            raise RuntimeError(f"the reasoner's engine failed: {self.failure}")
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def answer(result: Any) -> None:
            loop.call_soon_threadsafe(_settle, future, result)

        name = uuid.uuid4().hex
        self._inbox.put(Asked(name, {"prompt_token_ids": prompt}, params, answer))
        try:
            return list(await future)
        except asyncio.CancelledError:
            self._inbox.put(Asked(name, None, None, None))
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
                    if output.finished and (answer := self._waiting.pop(output.request_id, None)) is not None:
                        answer(output.outputs)
        except BaseException as error:
            self.failure = error
            for answer in self._waiting.values():
                answer(error)
            raise

    def _take_in(self, engine: Any) -> None:
        """Everything that has come; waits for something where there is nothing to step."""
        try:
            idle = not engine.has_unfinished_requests()
            asked = self._inbox.get(timeout=ONE_MORE_S) if idle else self._inbox.get_nowait()
            while True:
                if asked.answer is not None:
                    engine.add_request(asked.name, asked.prompt, asked.params)
                    self._waiting[asked.name] = asked.answer
                elif self._waiting.pop(asked.name, None) is not None:
                    engine.abort_request([asked.name])
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
        self.stepper = Stepper(lambda: VllmEngine(folder, config))
        self.renderer, self.temperature = self.stepper.engine.renderer, config.temperature
        await self.reason(["warm up"], 1, False)  # seconds that no request should wait for

    def check_health(self) -> None:
        """Serve replaces a replica that raises here."""
        if self.stepper.failure is not None:
            raise RuntimeError(f"the reasoner's engine failed: {self.stepper.failure}")

    async def ping(self) -> bool:
        """Whether the engine still steps."""
        return self.stepper.failure is None

    async def reason(self, queries: list[str], count: int, must_think: bool) -> list[list[str]]:
        """`count` reasonings of each query: the greedy one if it is one, else samples, the same ones each time.

        Args:
            must_think: an empty reasoning is not allowed.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        def params(query: str) -> SamplingParams:
            return SamplingParams(
                n=count,
                temperature=self.temperature if count > 1 else 0.0,
                seed=zlib.crc32(query.encode()) if count > 1 else None,
                max_tokens=self.renderer.template.budget,  # and the close is forced
                min_tokens=int(must_think),
                stop_token_ids=[self.renderer.close, self.renderer.emb],
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )

        found = await asyncio.gather(*(self.stepper.generate(self._prompt(q), params(q)) for q in queries))
        return [[self._text(list(completion.token_ids)) for completion in completions] for completions in found]

    async def route(self, queries: list[str]) -> list[float]:
        """The chance, 0 to 1, that the model thinks nothing: that `</think>` follows `<think>` at once."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        close = self.renderer.close
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            logprob_token_ids=[close],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        found = await asyncio.gather(*(self.stepper.generate(self._prompt(query), params) for query in queries))
        return [math.exp(completions[0].logprobs[0][close].logprob) for completions in found]

    def _prompt(self, query: str) -> list[int]:
        return [*self.renderer.query_prompt(query), self.renderer.think]

    def _text(self, tokens: list[int]) -> str:
        return self.renderer.reasoning_text([token for token in tokens if token not in self.renderer.special])
