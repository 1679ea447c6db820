"""One shard of the index in the service, as Ray Serve runs it: a live collection that it shares with its replicas.

Imports neither torch nor transformers: a shard starts in a moment and holds little but its vectors.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import faiss
import numpy as np

from lrem.index import Collection, Hit, matryoshka_search
from lrem.index.bulk_load import take
from lrem.index.changes import Changes, State, keep, marked, since

THREADS = 1  # of Faiss in a shard: scale by shards, never oversubscribe the cores
T = TypeVar("T")


class Part(NamedTuple):
    """Which part of which snapshot a shard owns, and the folder where it lives with what was written to it since."""

    source: str
    folder: str
    model: str
    shard: int
    shards: int
    factory: str | None


class Wanted(NamedTuple):
    """A search: vectors [Q, H] float32, how many items of each, a filter, and how many numbers of the vectors count."""

    vectors: np.ndarray
    k: int
    where: dict[str, Any] | None
    length: int | None


class OtherModelError(Exception):
    """Vectors of another model than the shard's: one of the two is just being replaced."""


class IndexShard:
    """The items that this shard owns."""

    def __init__(self, part: Part) -> None:
        logging.basicConfig(format="%(asctime)s %(name)s %(message)s")
        logging.getLogger("lrem").setLevel(logging.INFO)  # to say which structure is built, and why
        # OpenMP keeps its thread count for each calling thread: set it in the ones that search and write.
        self.reading = ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(THREADS,))
        self.writing = ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(THREADS,))
        folder = Path(part.folder)
        take(part.source, folder, part.model, part.shard, part.shards, part.factory)
        self.items = Collection(folder, part.model, factory=part.factory)

    def check_health(self) -> None:
        """Serve replaces a replica that raises here: a collection that a failure has closed is opened again."""
        if self.items.closed:
            raise RuntimeError(f"{self.items.folder} was closed by a failure: the log of this replica says which")

    async def search(self, wanted: list[Wanted], model: str) -> list[list[list[Hit]]]:
        """The k best items of this shard for each vector of each request, among those that match.

        Args:
            model: what made the vectors.

        Raises:
            OtherModelError: the items here are another model's.
        """
        self._same(model)
        return await self._do(self.reading, lambda: self._search(wanted))

    def _search(self, wanted: list[Wanted]) -> list[list[list[Hit]]]:
        """Requests that differ in their vectors alone are one search."""
        alike: dict[str, list[int]] = {}
        for i, one in enumerate(wanted):
            alike.setdefault(repr((one.k, one.where, one.length)), []).append(i)
        found: list[list[list[Hit]]] = [[] for _ in wanted]
        for together in alike.values():
            first = wanted[together[0]]
            hits = iter(self._one(first._replace(vectors=np.concatenate([wanted[i].vectors for i in together]))))
            for i in together:
                found[i] = [next(hits) for _ in wanted[i].vectors]
        return found

    def _one(self, wanted: Wanted) -> list[list[Hit]]:
        vectors, k, where, length = wanted
        if length is None or length == vectors.shape[1]:
            return self.items.search(vectors, k, where)
        return matryoshka_search.search(self.items, vectors, length, k, where)

    async def upsert(self, ids: list[str], payloads: list[dict[str, Any]], vectors: np.ndarray, model: str) -> int:
        """Write items, durably; returns how many were new. vectors, model: as of `search`; raises as it."""
        self._same(model)
        return await self._do(self.writing, lambda: self.items.upsert(ids, payloads, vectors))

    async def delete(self, ids: list[str]) -> int:
        """Delete items, durably; returns how many there were."""
        return await self._do(self.writing, lambda: self.items.delete(ids))

    async def get(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """item_id → payload, of the ids that are there."""
        return await self._do(
            self.reading, lambda: {item_id: item.payload for item_id, item in self.items.get(ids).items()}
        )

    async def count(self, where: dict[str, Any] | None) -> int:
        """How many items match."""
        return await self._do(self.reading, lambda: self.items.count(where))

    async def scroll(self, limit: int, after: str) -> list[tuple[str, dict[str, Any]]]:
        """Up to `limit` items in the order of ids, from behind `after`."""
        return await self._do(self.reading, lambda: self.items.scroll(limit, after).items)

    async def changes(self, state: State | None, limit: int) -> Changes:
        """What was written since a state; None: since the shard was filled from its snapshot."""
        known = marked(self.items.folder) if state is None else state
        return await self._do(self.writing, lambda: since(self.items.store, known, limit))

    async def told(self, state: State) -> None:
        """A newer index knows what was written up to a state."""
        await self._do(self.writing, lambda: keep(self.items.folder, state))

    def _same(self, model: str) -> None:
        if model != self.items.model:
            raise OtherModelError(f"vectors of model {model}, the shard holds those of {self.items.model}")

    async def _do(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
