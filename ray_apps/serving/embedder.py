"""The embedder of the service, as Ray Serve runs it: the embedding forward of training and evaluation.

The forward has one thread of its own, so the event loop stays free. Who asks brings many texts together (batcher.py),
and the forward takes as many tokens at a time as suit the device (lrem.modeling.model). Knows nothing of HTTP.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from lrem.modeling.model import ReasoningEmbedder
from ray_apps.serving.reasoner import require_model

THREADS = 1  # of torch in an embedder: scale by replicas, never oversubscribe the cores

Pair = tuple[str, str | None]
T = TypeVar("T")


class Embedder:
    """Queries with their reasonings, or titles, in; unit vectors out."""

    def __init__(self, folder: str, model: str) -> None:
        require_model(folder, model)
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(THREADS,))
        self.embedder = ReasoningEmbedder.load(folder).eval()
        if torch.cuda.is_available():
            self.embedder.cuda()

    async def queries(self, pairs: list[Pair]) -> np.ndarray:
        """Unit vectors [N, H] float32 of queries with their reasonings."""
        # not asked to think means an empty thought: the form that training taught on easy queries
        texts, thoughts = [query for query, _ in pairs], [thought or "" for _, thought in pairs]
        return await self._do(self.embedder.encode_queries, texts, thoughts)

    async def items(self, titles: list[str]) -> np.ndarray:
        """Unit vectors [N, H] float32 of titles."""
        return await self._do(self.embedder.encode_items, titles)

    async def count(self, texts: list[str], reasonings: list[str | None] | None) -> tuple[int, int]:
        """Token ids of the inputs alone, and with their reasonings; None counts the texts as items."""
        return await self._do(self._count, texts, reasonings)

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

    async def _do(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *args)

    def _count(self, texts: list[str], reasonings: list[str | None] | None) -> tuple[int, int]:
        renderer = self.embedder.renderer
        if reasonings is None:
            items = sum(len(renderer.item(text)) for text in texts)
            return items, items
        prompts = sum(len(renderer.query(text, "")) for text in texts)
        pairs = zip(texts, reasonings, strict=True)
        return prompts, sum(len(renderer.query(text, thought or "")) for text, thought in pairs)
