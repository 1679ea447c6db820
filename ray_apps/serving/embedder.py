"""The embedder as a Ray Serve deployment: the same forward pass as in training and evaluation.

The forward pass runs in its own thread, so that the event loop stays free. Callers send many texts together
(batcher.py), and `lrem.modeling.model` splits them into batches that suit the device.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from lrem.modeling.model import ReasoningEmbedder
from ray_apps.serving.handles import ReasonedQuery
from ray_apps.serving.reasoner import require_model

THREADS = 1  # of torch in an embedder: scale by replicas, never oversubscribe the cores

T = TypeVar("T")


class Embedder:
    """Queries with their reasonings, or titles, in; unit vectors out."""

    def __init__(self, folder: str, model: str) -> None:
        require_model(folder, model)
        self.thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(THREADS,))
        self.embedder = ReasoningEmbedder.load(folder).eval()
        if torch.cuda.is_available():
            self.embedder.cuda()

    async def ping(self) -> None:
        """Return if the replica can answer."""

    async def embed_queries(self, pairs: list[ReasonedQuery]) -> np.ndarray:
        """Return unit vectors [N, H] float32 of queries with their reasonings."""
        # None becomes an empty thought, as training has it for easy queries; for the model, None means no think block
        texts, reasonings = [query for query, _ in pairs], [reasoning or "" for _, reasoning in pairs]
        return await self._run(self.embedder.encode_queries, texts, reasonings)

    async def embed_items(self, titles: list[str]) -> np.ndarray:
        """Return unit vectors [N, H] float32 of titles."""
        return await self._run(self.embedder.encode_items, titles)

    async def count_tokens(self, texts: list[str], reasonings: list[str | None] | None) -> tuple[int, int]:
        """Return the number of token ids of the inputs alone, and with their reasonings.

        Args:
            reasonings: one per text, which is then a query; None counts the texts as items.
        """
        return await self._run(self._count_tokens, texts, reasonings)

    async def decode(self, rows: list[list[int]]) -> list[str]:
        """Return the text of each row of token ids.

        Raises:
            ValueError: an id that the tokenizer does not have.
        """
        size = len(self.embedder.tokenizer)
        for row in rows:
            if unknown := [token for token in row if not 0 <= token < size]:
                raise ValueError(f"token id {unknown[0]} is out of range: the vocabulary has {size} tokens")
        return [str(self.embedder.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

    async def dimensions(self) -> tuple[int, tuple[int, ...]]:
        """Return the length of a vector, and the shorter lengths that the model was trained for (matryoshka)."""
        return self.embedder.dimension, self.embedder.template.matryoshka

    async def _run(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work, *args)

    def _count_tokens(self, texts: list[str], reasonings: list[str | None] | None) -> tuple[int, int]:
        renderer = self.embedder.renderer
        if reasonings is None:
            items = sum(len(renderer.item_ids(text)) for text in texts)
            return items, items
        prompts = sum(len(renderer.query_ids(text, "")) for text in texts)
        pairs = zip(texts, reasonings, strict=True)
        return prompts, sum(len(renderer.query_ids(text, reasoning or "")) for text, reasoning in pairs)
