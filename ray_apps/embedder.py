"""The embedder of the service, as Ray Serve runs it: the embedding forward of training and evaluation, in batches.

The forward has one thread of its own, so the event loop stays free to collect the next batch. Knows nothing of HTTP.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from ray import serve

from lrem.model import ReasoningEmbedder
from ray_apps.reasoner import require_model

THREADS = 1  # of torch in an embedder: scale by replicas, never oversubscribe the cores
UNIT, BATCH_UNITS = 128, 128  # characters of a unit, and units that one forward takes: about 4,000 tokens
BATCH_WAIT_S = 0.004  # how long the first request of a batch waits for others

Pair = tuple[str, str | None]


class Counted(NamedTuple):
    """Token ids of the inputs alone, and with their reasonings."""

    prompt: int
    total: int


def _units(batch: list[list[Any]]) -> int:
    """What the forward of a batch costs, more or less; a request that is more than a batch is one by itself."""
    return sum(min(BATCH_UNITS, 1 + sum(map(_characters, request)) // UNIT) for request in batch)


def _characters(one: str | Pair) -> int:
    return len(one) if isinstance(one, str) else len(one[0]) + len(one[1] or "")


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


class Embedder:
    """Queries with their reasonings, or titles, in; unit vectors out."""

    def __init__(self, folder: str, model: str) -> None:
        require_model(folder, model)
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(THREADS,))
        self.embedder = ReasoningEmbedder.load(folder).eval()
        if torch.cuda.is_available():
            self.embedder.cuda()

    @serve.batch(max_batch_size=BATCH_UNITS, batch_wait_timeout_s=BATCH_WAIT_S, batch_size_fn=_units)
    async def queries(self, batch: list[list[Pair]]) -> list[np.ndarray]:
        """For each request of (query, reasoning) pairs, unit vectors [n, H] float32."""
        return await _together(self.thread, self._queries, batch)

    @serve.batch(max_batch_size=BATCH_UNITS, batch_wait_timeout_s=BATCH_WAIT_S, batch_size_fn=_units)
    async def items(self, batch: list[list[str]]) -> list[np.ndarray]:
        """For each request of titles, unit vectors [n, H] float32."""
        return await _together(self.thread, self.embedder.encode_items, batch)

    async def count(self, texts: list[str], reasonings: list[str | None] | None) -> Counted:
        """How many token ids there are; None counts the texts as items."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self._count, texts, reasonings)

    async def texts(self, rows: list[list[int]]) -> list[str]:
        """What rows of token ids spell.

        Raises:
            ValueError: an id that the tokenizer does not have.
        """
        size = len(self.embedder.tokenizer)
        for row in rows:
            if wrong := [token for token in row if not 0 <= token < size]:
                raise ValueError(f"token {wrong[0]} is none of this model's {size}")
        return [str(self.embedder.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    async def about(self) -> tuple[int, tuple[int, ...]]:
        """The length of a vector, and the shorter ones that the model was trained to be cut to."""
        return self.embedder.dimension, self.embedder.template.matryoshka

    def _queries(self, pairs: list[Pair]) -> np.ndarray:
        # not asked to think means an empty thought: the form that training taught on easy queries
        return self.embedder.encode_queries([query for query, _ in pairs], [thought or "" for _, thought in pairs])

    def _count(self, texts: list[str], reasonings: list[str | None] | None) -> Counted:
        renderer = self.embedder.renderer
        if reasonings is None:
            items = sum(len(renderer.item(text)) for text in texts)
            return Counted(items, items)
        prompts = sum(len(renderer.query(text, "")) for text in texts)
        pairs = zip(texts, reasonings, strict=True)
        return Counted(prompts, sum(len(renderer.query(text, thought or "")) for text, thought in pairs))
