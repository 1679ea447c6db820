"""How items are divided among shards, and how the shards' hits are merged."""

import hashlib
import heapq
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from lrem.index.payload import Hit


def owner(item_id: str, shards: int) -> int:
    """Return the shard, 0 to shards − 1, that holds an item; a stable hash, the same in every process.

    >>> [owner(name, 2) for name in ("p1", "p2", "p3", "p4")]
    [1, 1, 1, 0]
    """
    return zlib.crc32(item_id.encode()) % shards


def generation_name(manifest: Mapping[str, Any], shards: int) -> str:
    """Return a short name for a snapshot divided into `shards`, used for the folder that it is served from."""
    identity = json.dumps([manifest["model"], manifest["sha256"], shards], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def merge_hits(parts: Iterable[list[Hit]], k: int) -> list[Hit]:
    """Return the k best of several shards' hits for one query, best first; ties in the order of the shards.

    >>> [hit.item_id for hit in merge_hits([[Hit("a", 0.9, {}), Hit("b", 0.2, {})], [Hit("c", 0.5, {})]], k=2)]
    ['a', 'c']
    """
    return list(heapq.merge(*parts, key=lambda hit: -hit.score))[:k]
