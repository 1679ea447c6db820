"""Dividing items by a hash of their id, and joining the shards' answers again.

Does not know where shards live. A stable hash, so that every process agrees on the owner.
"""

import hashlib
import heapq
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from lrem.index.payload import Hit


def owner(item_id: str, shards: int) -> int:
    """The shard, 0 to shards-1, that holds an item.

    >>> [owner(name, 2) for name in ("p1", "p2", "p3", "p4")]
    [1, 1, 1, 0]
    """
    return zlib.crc32(item_id.encode()) % shards


def generation_name(manifest: Mapping[str, Any], shards: int) -> str:
    """A short name for a snapshot divided into so many shards: what is served from it lies in a folder of that name."""
    named = json.dumps([manifest["model"], manifest["sha256"], shards], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def merge_hits(parts: Iterable[list[Hit]], k: int) -> list[Hit]:
    """The k best of several shards' hits for one query, best first; equal scores in the order of the shards.

    >>> [hit.item_id for hit in merge_hits([[Hit("a", 0.9, {}), Hit("b", 0.2, {})], [Hit("c", 0.5, {})]], k=2)]
    ['a', 'c']
    """
    return list(heapq.merge(*parts, key=lambda hit: -hit.score))[:k]
