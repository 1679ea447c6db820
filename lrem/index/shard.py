"""Dividing an index by a hash of the item id, and joining the shards' answers again.

Knows an index; does not know where shards live. A stable hash, so that every process agrees on the owner.
"""

import heapq
import zlib
from collections.abc import Iterable

import numpy as np

from lrem.index.vector_index import Hit, VectorIndex


def owner(item_id: str, shards: int) -> int:
    """The shard, 0 to shards-1, that holds an item.

    >>> [owner(name, 2) for name in ("p1", "p2", "p3", "p4")]
    [1, 1, 1, 0]
    """
    return zlib.crc32(item_id.encode()) % shards


def take(index: VectorIndex, shard: int, shards: int) -> VectorIndex:
    """The part of `index` that `shard` of `shards` owns, as an index of its own; one shard owns it whole.

    It is built by the same factory. Vectors come back out of `index`, so a factory that compresses them
    compresses what it had kept.

    Raises:
        BuildError: Faiss cannot build the index's factory on a part this small.
    """
    if shards == 1:
        return index
    ids = index.items["item_id"].to_pylist()
    rows = np.array([row for row, item_id in enumerate(ids) if owner(item_id, shards) == shard], dtype=np.int64)
    vectors = index.index.reconstruct_n(0, len(index))[rows]  # [n, H]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # compressed vectors are not quite of unit length
    return VectorIndex.build(index.items.take(rows), vectors, index.model, index.factory)


def merge(parts: Iterable[list[Hit]], k: int) -> list[Hit]:
    """The k best of several shards' hits for one query, best first; equal scores in the order of the shards.

    >>> [hit.item_id for hit in merge([[Hit("a", 0.9, {}), Hit("b", 0.2, {})], [Hit("c", 0.5, {})]], k=2)]
    ['a', 'c']
    """
    return list(heapq.merge(*parts, key=lambda hit: -hit.score))[:k]
