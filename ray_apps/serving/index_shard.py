"""One shard of the index as a Ray Serve deployment: a live collection, shared by the replicas of the shard.

Imports neither torch nor transformers, so that a shard starts quickly and holds little but its vectors.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import faiss
import numpy as np

from lrem.errors import LremError
from lrem.index import Collection, Hit, matryoshka_search
from lrem.index.bulk_load import restore_shard
from lrem.index.changes import Changes, Watermark, changes_since, record_carried, start_watermark

THREADS = 1  # of Faiss in a shard: scale by shards, never oversubscribe the cores
FieldKinds = dict[str, set[str]]  # field → kinds of its values, see filters.require_comparable
T = TypeVar("T")


class ShardSpec(NamedTuple):
    """Which part of which snapshot a shard owns, and the folder in which it lives with what is written to it."""

    source: str
    folder: str
    model: str
    shard: int
    shards: int
    factory: str | None


class ShardHits(NamedTuple):
    """A shard's answer to a request: the hits of each vector, and what the values of the filter's fields are."""

    hits: list[list[Hit]]
    kinds: FieldKinds


class IndexShardRequest(NamedTuple):
    """A search of a shard.

    Attributes:
        vectors: [Q, H] float32, of unit length.
        k: items for each query.
        where: a filter on the payload.
        dimensions: compare only this many leading numbers of the vectors; None compares all.
    """

    vectors: np.ndarray
    k: int
    where: dict[str, Any] | None
    dimensions: int | None


class OtherModelError(LremError):
    """The vectors are of another model than the shard's: one of the two is being replaced."""


class IndexShard:
    """The items that one shard owns."""

    def __init__(self, spec: ShardSpec) -> None:
        logging.basicConfig(format="%(asctime)s %(name)s %(message)s")
        logging.getLogger("lrem").setLevel(logging.INFO)  # logs which structure is built, and why
        # OpenMP keeps a thread count for each calling thread: set it in the threads that search and write.
        self.read_thread = ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(THREADS,))
        self.write_thread = ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(THREADS,))
        folder = Path(spec.folder)
        restore_shard(spec.source, folder, spec.model, spec.shard, spec.shards, spec.factory)
        self.collection = Collection(folder, spec.model, factory=spec.factory)

    def check_health(self) -> None:
        """Raise RuntimeError if a failure has closed the collection; Serve then replaces the replica."""
        if self.collection.closed:
            raise RuntimeError(f"{self.collection.folder} was closed by a failure: see the log of this replica")

    async def ping(self) -> None:
        """Return once the shard can answer: its collection is open and counts its items."""
        await self.count(None)

    async def search(self, requests: list[IndexShardRequest], model: str) -> list[ShardHits]:
        """Return the k best matching items of this shard for each vector of each request.

        Args:
            requests: searched together where they differ in nothing but their vectors.
            model: fingerprint of the model that made the vectors.

        Raises:
            OtherModelError: the items of the shard are another model's.
        """
        self._require_model(model)
        return await self._run(self.read_thread, lambda: self._search_grouped(requests))

    def _search_grouped(self, requests: list[IndexShardRequest]) -> list[ShardHits]:
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr((request.k, request.where, request.dimensions)), []).append(i)
        results: list[ShardHits] = [ShardHits([], {}) for _ in requests]
        for group in groups.values():
            request = requests[group[0]]
            vectors = np.concatenate([requests[i].vectors for i in group])
            hits = iter(self._search(request._replace(vectors=vectors)))
            kinds = self._kinds(request.where)
            for i in group:
                results[i] = ShardHits([next(hits) for _ in requests[i].vectors], kinds)
        return results

    def _kinds(self, where: dict[str, Any] | None) -> FieldKinds:
        return {} if where is None else self.collection.kinds(where)

    def _search(self, request: IndexShardRequest) -> list[list[Hit]]:
        vectors, k, where, dimensions = request
        if dimensions is None or dimensions == vectors.shape[1]:
            return self.collection.search(vectors, k, where)
        return matryoshka_search.search(self.collection, vectors, dimensions, k, where)

    async def upsert(self, ids: list[str], payloads: list[dict[str, Any]], vectors: np.ndarray, model: str) -> int:
        """Write items durably; return how many were new.

        Args:
            ids: ids of the items; vectors [N, H] float32 and payloads are in the same order.
            model: fingerprint of the model that made the vectors.

        Raises:
            OtherModelError: the items of the shard are another model's.
        """
        self._require_model(model)
        return await self._run(self.write_thread, lambda: self.collection.upsert(ids, payloads, vectors))

    async def delete(self, ids: list[str]) -> int:
        """Delete items durably; return how many existed."""
        return await self._run(self.write_thread, lambda: self.collection.delete(ids))

    async def get(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """Return item_id → payload, for the ids that exist."""
        return await self._run(
            self.read_thread, lambda: {item_id: item.payload for item_id, item in self.collection.get(ids).items()}
        )

    async def count(self, where: dict[str, Any] | None) -> tuple[int, FieldKinds]:
        """Return how many items match a filter, None matches all, and what the values of its fields are."""
        return await self._run(self.read_thread, lambda: (self.collection.count(where), self._kinds(where)))

    async def scroll(self, limit: int, after: str) -> list[tuple[str, dict[str, Any]]]:
        """Return up to `limit` items in the order of their ids, those after the id `after`."""
        return await self._run(self.read_thread, lambda: self.collection.scroll(limit, after).items)

    async def changes(self, state: Watermark | None, limit: int) -> Changes:
        """Return what was written since a state; None: since the shard was filled from its snapshot."""
        start = start_watermark(self.collection.folder) if state is None else state
        return await self._run(self.write_thread, lambda: changes_since(self.collection.store, start, limit))

    async def mark_carried_over(self, state: Watermark) -> None:
        """Record that a newer index has all changes up to a state."""
        await self._run(self.write_thread, lambda: record_carried(self.collection.folder, state))

    def _require_model(self, model: str) -> None:
        if model != self.collection.model:
            raise OtherModelError(f"vectors of model {model}, the shard holds those of {self.collection.model}")

    async def _run(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(thread, work)
