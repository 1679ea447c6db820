"""Search by the first numbers of the vectors alone, in an index that was built for all of them.

Knows collections; does not know which lengths a model was trained for.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lrem.data.vectors import normalize, truncate
from lrem.index.collection import Collection
from lrem.index.payload import Hit
from lrem.index.store import StoredItem

CANDIDATES = 4  # times k: the best by the zero-padded query, whose order is not quite that of the shortened items


def search(
    collection: Collection, queries: np.ndarray, length: int, k: int, where: Mapping[str, Any] | None
) -> list[list[Hit]]:
    """The k best items of each query by the cosine of the first `length` numbers, best first.

    Args:
        queries: [Q, H] float32; `length` is at most H. Raises as `Collection.search`.
    """
    queries = truncate(queries, length)
    padded = np.pad(queries, ((0, 0), (0, collection.dimension - length)))
    found = collection.search(padded, CANDIDATES * k, where)
    stored = collection.get([hit.item_id for hits in found for hit in hits])
    return [_again(query, hits, stored)[:k] for query, hits in zip(queries, found, strict=True)]


def _again(query: np.ndarray, hits: list[Hit], stored: dict[str, StoredItem]) -> list[Hit]:
    """Hits by the cosine of `query`, [h], with as many numbers of theirs; what went meanwhile is left out."""
    hits = [hit for hit in hits if hit.item_id in stored]
    if not hits:
        return []
    scores = normalize(np.stack([stored[hit.item_id].vector[: len(query)] for hit in hits])) @ query
    scored = [hit._replace(score=float(score)) for hit, score in zip(hits, scores, strict=True)]
    return sorted(scored, key=lambda hit: -hit.score)
