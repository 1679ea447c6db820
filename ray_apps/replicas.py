"""The model in the service, as Ray Serve runs it: reasoner (vLLM) and embedder (transformers).

Each blocking engine has one thread of its own, so the event loop stays free to collect the next batch. Knows
nothing of HTTP.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray import serve

from lrem.model import ReasoningEmbedder, fingerprint
from lrem.settings import RolloutConfig
from ray_apps.engines import VllmEngine

THREADS = 1  # of torch in an embedder: scale by replicas, never oversubscribe the cores
BATCH = 32  # requests that one call of an engine answers together
BATCH_WAIT_S = 0.004  # how long the first of them waits for others


async def _together(
    thread: ThreadPoolExecutor, function: Callable[[list[Any]], Any], batch: list[list[Any]]
) -> list[Any]:
    """One call of `function` in `thread` over all requests of a batch, its results dealt out again."""
    flat = list(chain.from_iterable(batch))
    results = await asyncio.get_running_loop().run_in_executor(thread, function, flat)
    dealt, start = [], 0
    for request in batch:
        dealt.append(results[start : start + len(request)])
        start += len(request)
    return dealt


def _require(folder: str, model: str) -> None:
    """A replica that starts later must not come up with other weights than its neighbours."""
    found = fingerprint(Path(folder))
    if found != model:
        raise ValueError(f"{folder} now holds model {found}, the application serves {model}: start it again")


class Reasoner:
    """vLLM over the model folder: queries in, keyword lists out."""

    def __init__(self, folder: str, model: str, config: RolloutConfig) -> None:
        _require(folder, model)
        self.thread = ThreadPoolExecutor(1)  # the engine is not thread-safe, and binds its cores to one thread
        self.engine = self.thread.submit(VllmEngine, folder, config).result()
        self.thread.submit(self.engine.reason, ["warm up"]).result()  # seconds that no request should wait for

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def reason(self, batch: list[list[str]]) -> list[list[str]]:
        """For each request, one reasoning for each of its queries."""
        return await _together(self.thread, self.engine.reason, batch)


class Embedder:
    """The embedding forward, the same code as in training and evaluation."""

    def __init__(self, folder: str, model: str) -> None:
        _require(folder, model)
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(THREADS,))
        self.embedder = ReasoningEmbedder.load(folder).eval()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def queries(self, batch: list[list[tuple[str, str | None]]]) -> list[np.ndarray]:
        """For each request of (query, reasoning) pairs, unit vectors [n, H] float32."""
        return await _together(self.thread, self._queries, batch)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def items(self, batch: list[list[str]]) -> list[np.ndarray]:
        """For each request of titles, unit vectors [n, H] float32."""
        return await _together(self.thread, self.embedder.encode_items, batch)

    async def count(self, texts: list[str], reasonings: list[str | None] | None) -> tuple[int, int]:
        """Token ids of the inputs alone, and with their reasonings; None counts the texts as items."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._count, texts, reasonings)

    def _queries(self, pairs: list[tuple[str, str | None]]) -> np.ndarray:
        # not asked to think means an empty thought: the form that training taught on easy queries
        return self.embedder.encode_queries([query for query, _ in pairs], [thought or "" for _, thought in pairs])

    def _count(self, texts: list[str], reasonings: list[str | None] | None) -> tuple[int, int]:
        renderer = self.embedder.renderer
        if reasonings is None:
            items = sum(len(renderer.item(text)) for text in texts)
            return items, items
        prompts = sum(len(renderer.query(text, "")) for text in texts)
        return prompts, sum(
            len(renderer.query(text, thought or "")) for text, thought in zip(texts, reasonings, strict=True)
        )
