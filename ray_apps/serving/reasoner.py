"""The reasoner of the service as a Ray Serve deployment: queries in, keyword lists out."""

import asyncio
import math
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lrem.config import RolloutConfig
from lrem.modeling.model import fingerprint
from lrem.modeling.thinking import DecodingPolicy, needs_thinking
from lrem.training.rollout import ReasoningResponse
from ray_apps.rollouts.engines import VllmEngine
from ray_apps.serving.engine_loop import EngineLoop


def require_model(folder: str, model: str) -> None:
    """Refuse another model: a replica that starts later must serve the same weights as the others.

    Raises:
        ValueError: the folder holds another model by now.
    """
    actual = fingerprint(Path(folder))
    if actual != model:
        raise ValueError(f"{folder} now holds model {actual}, but the application serves {model}: start it again")


class Reasoner:
    """vLLM over a model folder; it also decides by the first token which queries need a reasoning.

    Args:
        model: fingerprint of the model in `folder`.
    """

    async def __init__(self, folder: str, model: str, config: RolloutConfig) -> None:  # type: ignore[misc]
        require_model(folder, model)
        self.loop = EngineLoop(lambda: VllmEngine(folder, config, logprobs="raw_logprobs"))
        self.renderer, self.temperature = self.loop.engine.renderer, config.temperature
        self.decoding = DecodingPolicy.reasoning(self.renderer)
        for think_below in (None, 1.0):  # with and without routing: vLLM compiles for seconds, no request should wait
            await self.reason(["warm up"], 1, think_below)

    def check_health(self) -> None:
        """Raise if the engine has failed: Ray Serve then replaces the replica."""
        if self.loop.failure is not None:
            raise RuntimeError(f"the reasoner's engine failed: {self.loop.failure}")

    async def ping(self) -> None:
        """Return if the replica can answer. Raises RuntimeError as `check_health`."""
        self.check_health()

    async def count_aborted(self) -> int:
        """Return how many requests were aborted because their callers were cancelled."""
        return self.loop.aborted

    async def reason(self, queries: list[str], count: int, think_below: float | None) -> ReasoningResponse:
        """Return `count` reasonings of each query: the greedy one for 1, else samples, the same on every call.

        Args:
            think_below: see `needs_thinking`; None: reason over every query. A reasoning has at least one token.
        """
        if think_below is None:
            return ReasoningResponse(await self._generate_all(queries, count), 0.0)
        started = time.perf_counter()
        if count == 1:
            return await self._route_greedy(queries, think_below)
        empty = await self.empty_reasoning_probabilities(queries)
        decided_s = time.perf_counter() - started
        thinks = [needs_thinking(probability, think_below) for probability in empty]
        hard = [query for query, is_hard in zip(queries, thinks, strict=True) if is_hard]
        reasonings = iter(await self._generate_all(hard, count))
        return ReasoningResponse([next(reasonings) if is_hard else None for is_hard in thinks], decided_s)

    async def _generate_all(self, queries: list[str], count: int) -> list[list[str] | None]:
        requests = (self._generate(query, self._params(query, count)) for query in queries)
        return [self._texts(completions) for completions in await asyncio.gather(*requests)]

    async def _route_greedy(self, queries: list[str], think_below: float) -> ReasoningResponse:
        """Generate greedy reasonings, and abort those whose first token shows that none is needed."""
        started, decided_s = time.perf_counter(), 0.0

        def is_needless(completions: list[Any]) -> bool:
            nonlocal decided_s
            decided_s = time.perf_counter() - started
            return not needs_thinking(self._empty_probability(completions), think_below)

        requests = (self._generate(q, self._params(q, 1, routes=True), is_needless) for q in queries)
        reasonings = [
            self._texts(completions) if needs_thinking(self._empty_probability(completions), think_below) else None
            for completions in await asyncio.gather(*requests)
        ]
        return ReasoningResponse(reasonings, decided_s)

    async def empty_reasoning_probabilities(self, queries: list[str]) -> list[float]:
        """Return, for each query, the probability that `</think>` follows `<think>` at once."""
        params = self._params("", 1, routes=True)
        params.max_tokens = 1
        outputs = await asyncio.gather(*(self._generate(query, params) for query in queries))
        return [self._empty_probability(completions) for completions in outputs]

    def _params(self, query: str, count: int, routes: bool = False) -> Any:
        """Return vLLM's SamplingParams. routes: also report the probability of `</think>` after every step."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=count,
            temperature=self.temperature if count > 1 else 0.0,
            seed=zlib.crc32(query.encode()) if count > 1 else None,
            logprob_token_ids=[self.renderer.close] if routes else None,
            output_kind=RequestOutputKind.CUMULATIVE if routes else RequestOutputKind.FINAL_ONLY,
            **self.decoding.vllm_arguments(),
        )

    def _empty_probability(self, completions: list[Any]) -> float:
        return math.exp(completions[0].logprobs[0][self.renderer.close].logprob)

    def _generate(
        self, query: str, params: Any, is_enough: Callable[[Any], bool] | None = None
    ) -> Awaitable[list[Any]]:
        return self.loop.generate(self.renderer.thinking_prompt(query), params, is_enough)

    def _texts(self, completions: list[Any]) -> list[str]:
        return [self.renderer.thought_text(completion.token_ids) for completion in completions]
