"""The way of a request behind the ingress: route, reason, embed, search; and of an item: embed, write.

Knows Serve handles, deadlines, what to do when a part fails, and the cache of queries; does not know HTTP.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from cachetools import TTLCache
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from lrem.config import ReplicasConfig, ServeConfig
from lrem.data.vectors import group_means
from lrem.errors import StoreError
from lrem.index import Hit
from lrem.index.shard import merge, owner
from ray_apps.serving import schema
from ray_apps.serving.batcher import Batcher
from ray_apps.serving.deadline import Phases
from ray_apps.serving.errors import ServiceError
from ray_apps.serving.index_shard import OtherModelError, Wanted
from ray_apps.serving.metrics import Measures

REST_S = 2.0  # after a reasoner that died, or was late with so few: others need not wait for it as long
SMALL = 8
CLOSED = 4  # times that a shard whose collection was closed by a failure is asked again
AGAIN_S = 0.5  # before a call is made again where old and new replicas do not fit together
Pair = tuple[str, str | None]  # a query and a reasoning
T = TypeVar("T")

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """The deployments that serve one model and one index together."""

    model: str
    reasoner: DeploymentHandle
    embedder: DeploymentHandle
    shards: list[DeploymentHandle]


class Thought(NamedTuple):
    """A query as it is searched with: [H] float32 of unit length, and its reasonings; None: it was not thought over."""

    vector: np.ndarray
    reasonings: list[str] | None


class Found(NamedTuple):
    """The hits of each query, and the shards that did not answer."""

    hits: list[list[Hit]]
    missing: list[int]


class Upserted(NamedTuple):
    """How many items were new, and why those of a shard were not written: item_id → the error."""

    new: int
    failed: dict[str, ServiceError]


class Backend:
    """One generation of parts, asked with patience for what can fail."""

    def __init__(self, parts: Parts, settings: ServeConfig, measures: Measures) -> None:
        self.parts, self.settings, self.measures = parts, settings, measures
        self._reasoner_rests_until = 0.0
        self._embedding = Batcher(self._embed_pairs, _lanes(settings.embedder), settings.timeout_s)
        self._searching = [
            Batcher(partial(self._search_shard, s), _lanes(settings.shard), settings.search_timeout_s)
            for s in parts.shards
        ]
        self._cache: TTLCache[tuple[str, schema.Reason, int], Thought] = TTLCache(
            settings.cache_size, settings.cache_ttl_s
        )

    async def think(self, phases: Phases, queries: list[str], reason: schema.Reason, count: int) -> list[Thought]:
        """Each query's vector, thought over as asked; where the reasoner is down or late, without, and `degraded`."""
        keys = [(" ".join(query.split()), reason, count) for query in queries]
        known = {key: found for key in keys if (found := self._cache.get(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        self.measures.cache(len(keys) - len(missing), len(missing))
        if missing:
            texts = [text for text, _, _ in missing]
            reasonings = await self._reason(phases, texts, reason, count)
            vectors = await phases.run("embed", self._embed(texts, reasonings))
            fresh = {k: Thought(v, r) for k, v, r in zip(missing, vectors, reasonings, strict=True)}
            known |= fresh
            if not phases.degraded and self.settings.cache_size:
                self._cache.update(fresh)
        return [known[key] for key in keys]

    async def _reason(
        self, phases: Phases, texts: list[str], reason: schema.Reason, count: int
    ) -> list[list[str] | None]:
        if reason == "never":
            return [None] * len(texts)
        if time.monotonic() < self._reasoner_rests_until:
            return self._without_thought(phases, texts, "resting")
        below = self.settings.think_below if reason == "auto" else None

        async def ask() -> list[list[str] | None]:
            reasonings, decided_s = await _call(self.parts.reasoner.reason, texts, count, below)
            if below is not None:
                phases.part("route", decided_s)
            return list(reasonings)

        at_most_s = min(self.settings.reason_timeout_s, phases.left() - self.settings.search_timeout_s)
        try:
            return await phases.run("reason", ask(), at_most_s)
        except (TimeoutError, RayError, RayServeException) as error:
            if len(texts) * count <= SMALL or isinstance(error, RayActorError | RayServeException):
                self._reasoner_rests_until = time.monotonic() + REST_S
            return self._without_thought(phases, texts, type(error).__name__)

    def _without_thought(self, phases: Phases, texts: list[str], cause: str) -> list[list[str] | None]:
        phases.degraded = True
        self.measures.degraded(cause)
        return [None] * len(texts)

    async def _embed(self, texts: list[str], reasonings: list[list[str] | None]) -> np.ndarray:
        """[Q, H] float32: of several reasonings of a query, the mean of their vectors, of unit length again."""
        none: list[str | None] = [None]
        each = [some or none for some in reasonings]
        pairs = [(text, one) for text, some in zip(texts, each, strict=True) for one in some]
        vectors = await self._embedding(pairs)
        return group_means(vectors, [len(some) for some in each])

    async def _embed_pairs(self, requests: list[list[Pair]]) -> list[np.ndarray]:
        """The vectors of several requests in one call."""
        flat = [pair for pairs in requests for pair in pairs]
        vectors = await needed("embedder", self.parts.embedder.queries, flat)
        return np.split(vectors, np.cumsum([len(pairs) for pairs in requests])[:-1])

    async def _search_shard(self, shard: DeploymentHandle, wanted: list[Wanted]) -> list[list[list[Hit]]]:
        return list(await _call(shard.search, wanted, self.parts.model))

    async def search(
        self, phases: Phases, vectors: np.ndarray, k: int, where: dict[str, Any] | None, length: int | None = None
    ) -> Found:
        """The k best items of all shards; one that fails or is late is left out and named.

        Args:
            vectors: [Q, H] float32.
            length: compare the first so many numbers alone.

        Raises:
            ServiceError: 503, no shard answered.
        """
        limit, wanted = self.settings.search_timeout_s, Wanted(vectors, k, where, length)

        async def ask(shard: int) -> list[list[Hit]] | None:
            try:
                async with asyncio.timeout(limit):
                    return await self._searching[shard](wanted)
            except (TimeoutError, RayError, RayServeException) as error:
                log.warning("shard %d of the index did not answer: %s", shard, _why(error))
                return None

        parts = await phases.run("search", asyncio.gather(*map(ask, range(len(self._searching)))))
        missing = [i for i, part in enumerate(parts) if part is None]
        if len(missing) == len(parts):
            raise down("no shard of the index answered")
        self.measures.missing(len(missing))
        there = [part for part in parts if part is not None]
        return Found([merge(hits, k) for hits in zip(*there, strict=True)], missing)

    async def embed_items(self, titles: list[str]) -> np.ndarray:
        """Unit vectors [N, H] float32."""
        return np.asarray(await needed("embedder", self.parts.embedder.items, titles))

    async def upsert(self, ids: list[str], payloads: list[dict[str, Any]]) -> Upserted:
        """Embed the titles and write the items, each to its shard. Raises ServiceError 503 without an embedder."""
        vectors = await self.embed_items([payload["title"] for payload in payloads])
        found = await self._outcomes(
            ids,
            lambda shard, rows: _call(
                shard.upsert, [ids[i] for i in rows], [payloads[i] for i in rows], vectors[rows], self.parts.model
            ),
        )
        failed = {ids[i]: one for rows, one in found if isinstance(one, ServiceError) for i in rows}
        return Upserted(sum(one for _, one in found if not isinstance(one, ServiceError)), failed)

    async def delete(self, ids: list[str]) -> int:
        """Delete items; returns how many there were.

        Raises:
            ServiceError: 503, a part is down; what other shards have done stays.
        """
        return sum(await self._by_owner(ids, lambda shard, rows: _call(shard.delete, [ids[i] for i in rows])))

    async def get(self, ids: list[str]) -> dict[str, dict[str, Any]]:
        """item_id → payload. Raises as `delete`."""
        parts = await self._by_owner(ids, lambda shard, rows: _call(shard.get, [ids[i] for i in rows]))
        return {item_id: payload for part in parts for item_id, payload in part.items()}

    async def count(self, where: dict[str, Any] | None) -> int:
        """How many items match. Raises as `delete`."""
        return sum(await asyncio.gather(*(needed("index", shard.count, where) for shard in self.parts.shards)))

    async def scroll(self, limit: int, after: str) -> list[tuple[str, dict[str, Any]]]:
        """Up to `limit` items in the order of ids, from behind `after`. Raises as `delete`."""
        parts = await asyncio.gather(*(needed("index", s.scroll, limit, after) for s in self.parts.shards))
        return sorted((item for part in parts for item in part), key=lambda item: item[0])[:limit]

    async def _by_owner(self, ids: list[str], ask: Callable[[DeploymentHandle, list[int]], Awaitable[T]]) -> list[T]:
        """As `_outcomes`, of shards that all have to be there."""
        done: list[T] = []
        for _, one in await self._outcomes(ids, ask):
            if isinstance(one, ServiceError):
                raise one
            done.append(one)
        return done

    async def _outcomes(
        self, ids: list[str], ask: Callable[[DeploymentHandle, list[int]], Awaitable[T]]
    ) -> list[tuple[list[int], T | ServiceError]]:
        """One call for each shard that owns some of the ids, told which positions; a 503 for one that is down."""
        rows: dict[int, list[int]] = {}
        for i, item_id in enumerate(ids):
            rows.setdefault(owner(item_id, len(self.parts.shards)), []).append(i)
        found = await asyncio.gather(
            *(ask(self.parts.shards[shard], mine) for shard, mine in rows.items()), return_exceptions=True
        )
        outcomes: list[tuple[list[int], T | ServiceError]] = []
        for (shard, mine), one in zip(rows.items(), found, strict=True):
            if not isinstance(one, BaseException):
                outcomes.append((mine, one))
            elif isinstance(one, RayActorError | RayServeException) or _unable(one):
                what = f"shard {shard} of the index cannot do its part ({_why(one)}), others may have done theirs"
                outcomes.append((mine, down(what)))
            else:
                raise one
        return outcomes

    async def absent(self, timeout_s: float) -> list[str]:
        """The parts that do not answer within `timeout_s`."""
        asked = {"reasoner": self.parts.reasoner.ping, "embedder": self.parts.embedder.about}
        asked |= {f"shard {i}": shard.count for i, shard in enumerate(self.parts.shards)}

        async def answers(name: str, method: Any) -> bool:
            try:
                async with asyncio.timeout(timeout_s):
                    await _call(method, *([None] if name.startswith("shard") else []))
            except (TimeoutError, RayError, RayServeException):
                return False
            return True

        found = await asyncio.gather(*(answers(name, method) for name, method in asked.items()))
        return [name for name, there in zip(asked, found, strict=True) if not there]


def _lanes(replicas: ReplicasConfig) -> int:
    """Calls under way at once: one for each replica, and one that is on its way."""
    return (replicas.max_replicas or replicas.replicas) + 1


def busy() -> ServiceError:
    """429: more than can be answered is under way."""
    return ServiceError(429, "too many requests are under way: wait a second, send fewer at once", "busy", 1)


def down(what: str) -> ServiceError:
    """503, with the advice to send it again."""
    return ServiceError(503, f"{what}: send the request again, writing twice is harmless", "unavailable", 1)


async def needed(what: str, method: Any, *args: Any) -> Any:
    """As `_call`, of a part that no answer can do without. Raises ServiceError 503 where it is down, 429 where full."""
    try:
        return await _call(method, *args)
    except BackPressureError as error:
        raise busy() from error
    except (RayActorError, RayServeException) as error:
        raise down(f"the {what} does not answer") from error
    except RayTaskError as error:
        if not _unable(error):
            raise
        raise down(f"the {what} cannot answer ({error.cause})") from error
    except RayError as error:  # as a lost object, of a machine that died
        raise down(f"the {what} does not answer") from error


def _unable(error: Any) -> bool:
    """Whether a part could not do what it would do another time: its disk is full, or it was closed by a failure."""
    return isinstance(error, RayTaskError) and isinstance(error.cause, StoreError | sqlite3.Error | OSError)


def _why(error: BaseException) -> str:
    """A failure in a line: its type, and the first line of its message where it has one."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {cause}".partition("\n")[0].removesuffix(": ")


async def _call(method: Any, *args: Any) -> Any:
    """Call a method of a deployment; once more where the replica died, and until they fit where models differ.

    Everything that is called is harmless to do twice. A caller that is cancelled cancels the call.
    """
    died, closed = False, 0
    while True:
        response = method.remote(*args)
        try:
            return await response
        except RayActorError:
            if died:
                raise
            died = True
        except RayTaskError as error:
            if isinstance(error.cause, StoreError) and closed < CLOSED:  # until Serve replaces it, another may answer
                closed += 1
            elif not isinstance(error.cause, OtherModelError):
                raise
            await asyncio.sleep(AGAIN_S)
        except asyncio.CancelledError:
            response.cancel()
            raise
