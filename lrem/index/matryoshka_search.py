"""Search by the first dimensions of the vectors, in an index that was built for all of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrem.data.vectors import normalize, truncate
from lrem.index.collection import Collection
from lrem.index.payload import Hit
from lrem.index.store import ItemRecord

CANDIDATES = 4  # × k hits of the zero-padded query, whose order differs slightly from that of the shortened items


def search(
    collection: Collection, queries: np.ndarray, length: int, k: int, where: Mapping[str, Any] | None
) -> list[list[Hit]]:
    """Return the k best items of each query by the cosine of the first `length` dimensions, best first.

    Args:
        queries: [Q, H] float32; length ≤ H.

    Raises:
        FilterError, ValueError, StoreError: as `Collection.search`.
    """
    queries = truncate(queries, length)
    padded = np.pad(queries, ((0, 0), (0, collection.dimension - length)))
    candidates = collection.search(padded, CANDIDATES * k, where)
    stored = collection.get([hit.item_id for hits in candidates for hit in hits])
    return [_rescore(query, hits, stored)[:k] for query, hits in zip(queries, candidates, strict=True)]


def _rescore(query: np.ndarray, hits: list[Hit], stored: dict[str, ItemRecord]) -> list[Hit]:
    """Return the hits with their cosine to `query` [h], best first; items deleted in the meantime are left out."""
    hits = [hit for hit in hits if hit.item_id in stored]
    if not hits:
        return []
    scores = normalize(np.stack([stored[hit.item_id].vector[: len(query)] for hit in hits])) @ query
    rescored = [hit._replace(score=float(score)) for hit, score in zip(hits, scores, strict=True)]
    return sorted(rescored, key=lambda hit: -hit.score)
