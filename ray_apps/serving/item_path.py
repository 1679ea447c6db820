"""The path of an item: embed → write; and get, count, scroll, delete. Each id belongs to one shard.

ItemPath.upsert    Embedder.embed_items → IndexShard.upsert → lrem.index.Collection.upsert (SQLite, then Faiss)
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException

from lrem.index.shard import owner
from ray_apps.serving.calls import call, call_required, describe_failure, is_storage_failure
from ray_apps.serving.errors import ServiceError, refuse_incomparable, unavailable
from ray_apps.serving.handles import GenerationHandles, IndexShardHandle, Payload

T = TypeVar("T")


class UpsertResult(NamedTuple):
    """How many items were new, and why others were not written: item_id → the error of its shard."""

    new: int
    failed: dict[str, ServiceError]


class ShardOutcome(NamedTuple, Generic[T]):
    """What a shard returned for the ids at `positions` of a request, or a 503 if it is down."""

    positions: list[int]
    result: T | ServiceError


class ItemPath:
    """Items on one generation: embed, write, read."""

    def __init__(self, handles: GenerationHandles) -> None:
        self.handles = handles

    async def embed(self, titles: list[str]) -> np.ndarray:
        """Return unit vectors [N, H] float32. Raises ServiceError 503 if the embedder is down."""
        return np.asarray(await call_required("embedder", self.handles.embedder.embed_items, titles))

    async def upsert(self, ids: list[str], payloads: list[Payload]) -> UpsertResult:
        """Embed the titles and write each item to its shard. Raises ServiceError 503 if the embedder is down."""
        vectors = await self.embed([payload["title"] for payload in payloads])

        def write(shard: IndexShardHandle, rows: list[int]) -> Awaitable[int]:
            owned = [ids[i] for i in rows], [payloads[i] for i in rows], vectors[rows]
            return call(shard.upsert, *owned, self.handles.model)

        outcomes = await self._call_owners(ids, write)
        failed = {ids[i]: o.result for o in outcomes if isinstance(o.result, ServiceError) for i in o.positions}
        return UpsertResult(sum(o.result for o in outcomes if not isinstance(o.result, ServiceError)), failed)

    async def delete(self, ids: list[str]) -> int:
        """Delete items; return how many existed.

        Raises:
            ServiceError: 503, a shard is down; what the other shards have deleted stays deleted.
        """
        return sum(await self._require_owners(ids, lambda shard, rows: call(shard.delete, [ids[i] for i in rows])))

    async def get(self, ids: list[str]) -> dict[str, Payload]:
        """Return item_id → payload. Raises ServiceError 503 if a shard is down."""
        per_shard = await self._require_owners(ids, lambda shard, rows: call(shard.get, [ids[i] for i in rows]))
        return {item_id: payload for payloads in per_shard for item_id, payload in payloads.items()}

    async def count(self, where: Payload | None) -> int:
        """Return how many items match a filter.

        Raises:
            ServiceError: 503, a shard is down; 422, the filter compares a field with a type that no value has.
        """
        calls = (call_required("index", shard.count, where) for shard in self.handles.shards)
        answers = await asyncio.gather(*calls)
        refuse_incomparable(where, [kinds for _, kinds in answers])
        return sum(count for count, _ in answers)

    async def scroll(self, limit: int, after: str) -> list[tuple[str, Payload]]:
        """Return up to `limit` items in the order of ids, those after the id `after`. Raises as `count`."""
        pages = (call_required("index", shard.scroll, limit, after) for shard in self.handles.shards)
        items = [item for page in await asyncio.gather(*pages) for item in page]
        return sorted(items, key=lambda item: item[0])[:limit]

    async def _require_owners(
        self, ids: list[str], request: Callable[[IndexShardHandle, list[int]], Awaitable[T]]
    ) -> list[T]:
        """Call the owners of `ids` and return their results; the first shard that is down raises its ServiceError."""
        results: list[T] = []
        for outcome in await self._call_owners(ids, request):
            if isinstance(outcome.result, ServiceError):
                raise outcome.result
            results.append(outcome.result)
        return results

    async def _call_owners(
        self, ids: list[str], request: Callable[[IndexShardHandle, list[int]], Awaitable[T]]
    ) -> list[ShardOutcome[T]]:
        """Call each shard that owns some of the ids, with the positions of its ids."""
        positions: dict[int, list[int]] = {}
        for i, item_id in enumerate(ids):
            positions.setdefault(owner(item_id, len(self.handles.shards)), []).append(i)
        results = await asyncio.gather(
            *(request(self.handles.shards[shard], rows) for shard, rows in positions.items()), return_exceptions=True
        )
        return [
            ShardOutcome(rows, _result_or_503(shard, result))
            for (shard, rows), result in zip(positions.items(), results, strict=True)
        ]


def _result_or_503(shard: int, result: T | BaseException) -> T | ServiceError:
    """Return a shard's result; a 503 if the shard is down. Any other error is raised."""
    if not isinstance(result, BaseException):
        return result
    if isinstance(result, RayActorError | RayServeException) or is_storage_failure(result):
        failure = describe_failure(result)
        return unavailable(f"shard {shard} of the index failed ({failure}); other shards may have succeeded")
    raise result
