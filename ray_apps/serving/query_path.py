"""The path of a query: route → reason → embed → search, with a fallback for each deployment that may fail.

A search calls the two methods of `QueryPath` one after the other:

    encode    Reasoner.reason (thinks, or decides not to) → Embedder.embed_queries → one unit vector per query
    search    IndexShard.search on every shard → lrem.index.Collection.search (Faiss) → merge
"""

import asyncio
import logging
import time
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from cachetools import TTLCache
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from lrem.config import ReplicasConfig, ServeConfig
from lrem.data.vectors import group_means
from lrem.index import Hit
from lrem.index.shard import merge_hits
from ray_apps.serving.batcher import Batcher
from ray_apps.serving.calls import call, call_required, describe_failure
from ray_apps.serving.deadline import Deadline
from ray_apps.serving.errors import refuse_incomparable, unavailable
from ray_apps.serving.handles import GenerationHandles, IndexShardHandle, ReasonedQuery
from ray_apps.serving.index_shard import IndexShardRequest, ShardHits
from ray_apps.serving.metrics import ServingMetrics
from ray_apps.serving.schema import Reason

COOLDOWN_S = 2.0  # pause in calls to a reasoner that died, or that was late with at most SMALL_CALL reasonings
SMALL_CALL = 8
Reasonings = list[str] | None  # of one query; None: without one, embedded as an empty thought

log = logging.getLogger(__name__)


class EncodedQuery(NamedTuple):
    """A query's vector, [H] float32 of unit length, and its reasonings; None: it was embedded without thinking."""

    vector: np.ndarray
    reasonings: Reasonings


class EncodedQueries(NamedTuple):
    """Encoded queries; `degraded`: thinking was requested, but the reasoner is down or was late."""

    queries: list[EncodedQuery]
    degraded: bool

    @property
    def vectors(self) -> np.ndarray:
        """Return the vectors, [Q, H] float32."""
        return np.stack([query.vector for query in self.queries])


class SearchHits(NamedTuple):
    """The hits of each query, best first, and the numbers of the shards that did not answer."""

    hits: list[list[Hit]]
    missing_shards: list[int]


class QueryPath:
    """Queries on one generation: think, embed, search."""

    def __init__(self, handles: GenerationHandles, settings: ServeConfig, metrics: ServingMetrics) -> None:
        self.handles, self.settings, self.metrics = handles, settings, metrics
        self._cooldown_until = 0.0
        self._embed_batcher = Batcher(self._embed_batch, _lanes(settings.embedder), settings.timeout_s)
        self._shard_batchers = [
            Batcher(partial(self._search_shard, shard), _lanes(settings.shard), settings.search_timeout_s)
            for shard in handles.shards
        ]
        self._cache: TTLCache[tuple[str, Reason, int], EncodedQuery] = TTLCache(
            settings.cache_size, settings.cache_ttl_s
        )

    async def encode(self, deadline: Deadline, queries: list[str], reason: Reason, samples: int) -> EncodedQueries:
        """Think about queries as requested and embed them; cached queries take no time.

        Args:
            samples: number of reasonings of each query; the mean of their vectors is the query's.
        """
        keys = [(" ".join(query.split()), reason, samples) for query in queries]
        encoded = {key: query for key in keys if (query := self._cache.get(key)) is not None}
        misses = [key for key in dict.fromkeys(keys) if key not in encoded]
        self.metrics.count_cache(len(keys) - len(misses), len(misses))
        degraded = False
        if misses:
            texts = [text for text, _, _ in misses]
            reasonings, degraded = await self._reason(deadline, texts, reason, samples)
            vectors = await deadline.run("embed", self._embed(texts, reasonings))
            fresh = {key: EncodedQuery(v, r) for key, v, r in zip(misses, vectors, reasonings, strict=True)}
            encoded |= fresh
            if not degraded and self.settings.cache_size:
                self._cache.update(fresh)
        return EncodedQueries([encoded[key] for key in keys], degraded)

    async def _reason(
        self, deadline: Deadline, texts: list[str], reason: Reason, samples: int
    ) -> tuple[list[Reasonings], bool]:
        """Return the reasonings of each text, and whether the reasoner failed: then all are None."""
        without: list[Reasonings] = [None] * len(texts)
        if reason == "never":
            return without, False
        if time.monotonic() < self._cooldown_until:
            self.metrics.count_degraded("resting")
            return without, True
        think_below = self.settings.think_below if reason == "auto" else None
        limit_s = min(self.settings.reason_timeout_s, deadline.remaining_s() - self.settings.search_timeout_s)
        work = self._route_and_reason(deadline, texts, samples, think_below)
        try:
            return await deadline.run("reason", work, limit_s), False
        except (TimeoutError, RayError, RayServeException) as error:
            if len(texts) * samples <= SMALL_CALL or isinstance(error, RayActorError | RayServeException):
                self._cooldown_until = time.monotonic() + COOLDOWN_S
            self.metrics.count_degraded(type(error).__name__)
            return without, True

    async def _route_and_reason(
        self, deadline: Deadline, texts: list[str], samples: int, think_below: float | None
    ) -> list[Reasonings]:
        """Reason on one replica, which also decides for each text whether to think (`think_below`)."""
        reasonings, decided_s = await call(self.handles.reasoner.reason, texts, samples, think_below)
        if think_below is not None:
            deadline.attribute("route", decided_s)
        return list(reasonings)

    async def _embed(self, texts: list[str], reasonings: list[Reasonings]) -> np.ndarray:
        """Return [Q, H] float32: for several reasonings of a query, the mean of their vectors at unit length."""
        unreasoned: list[str | None] = [None]
        per_query = [several or unreasoned for several in reasonings]
        pairs = [(text, one) for text, several in zip(texts, per_query, strict=True) for one in several]
        vectors = await self._embed_batcher(pairs)
        return group_means(vectors, [len(several) for several in per_query])

    async def _embed_batch(self, requests: list[list[ReasonedQuery]]) -> list[np.ndarray]:
        """Embed the queries of several requests in one call."""
        flat = [pair for pairs in requests for pair in pairs]
        vectors = await call_required("embedder", self.handles.embedder.embed_queries, flat)
        return np.split(vectors, np.cumsum([len(pairs) for pairs in requests])[:-1])

    async def search(
        self, deadline: Deadline, vectors: np.ndarray, k: int, where: dict[str, Any] | None, dimensions: int | None
    ) -> SearchHits:
        """Return the k best items of all shards; a shard that fails or is late is left out and named.

        Args:
            vectors: [Q, H] float32.
            where: a filter on the payload.
            dimensions: compare only this many leading numbers of the vectors; None compares all.

        Raises:
            ServiceError: 503, no shard answered; 422, the filter compares a field with a type that no value has.
        """
        request = IndexShardRequest(vectors, k, where, dimensions)
        shards = range(len(self._shard_batchers))
        answers = await deadline.run("search", asyncio.gather(*(self._try_shard(i, request) for i in shards)))
        missing = [i for i, answer in enumerate(answers) if answer is None]
        if len(missing) == len(answers):
            raise unavailable("no shard of the index answered")
        self.metrics.count_missing_shards(len(missing))
        received = [answer for answer in answers if answer is not None]
        refuse_incomparable(where, [answer.kinds for answer in received])
        return SearchHits(
            [merge_hits(hits, k) for hits in zip(*(answer.hits for answer in received), strict=True)], missing
        )

    async def _try_shard(self, shard: int, request: IndexShardRequest) -> ShardHits | None:
        """Return a shard's hits of each query; None if it fails or is late."""
        try:
            async with asyncio.timeout(self.settings.search_timeout_s):
                return await self._shard_batchers[shard](request)
        except (TimeoutError, RayError, RayServeException) as error:
            log.warning("shard %d of the index did not answer: %s", shard, describe_failure(error))
            return None

    async def _search_shard(self, shard: IndexShardHandle, requests: list[IndexShardRequest]) -> list[ShardHits]:
        """Search a shard for several requests in one call."""
        return list(await call(shard.search, requests, self.handles.model))


def _lanes(replicas: ReplicasConfig) -> int:
    """Return how many calls are in progress at once: one for each replica, and one on its way."""
    return (replicas.max_replicas or replicas.replicas) + 1
