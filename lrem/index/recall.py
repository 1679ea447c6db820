"""What an approximate structure misses, and what it saves: a collection's search beside its own exact search.

Knows collections; does not know where the queries come from. They should be real ones: random vectors are harder.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lrem.index.collection import Collection

TIE = 1e-6  # cosines closer than this are the same


class Recall(NamedTuple):
    """recall@k, and the median milliseconds of one query searched alone, both ways."""

    recall: float
    ms: float
    exact_ms: float


def measure_recall(
    collection: Collection,
    queries: np.ndarray,
    k: int,
    where: Mapping[str, Any] | None = None,
    effort: float = 1.0,
) -> Recall:
    """Search each query both ways. queries: [Q, H] float32, Q ≥ 1; effort: as of `Collection.search`.

    recall@k is the share of the exact search's scores that the other reaches, so that which of two items with equal
    scores is found does not matter; 1.0 where nothing is there to be found.
    """
    found, wanted = 0, 0
    times: dict[bool, list[float]] = {False: [], True: []}
    for query in queries[:, None]:
        scores = {}
        for exact in (False, True):
            started = time.perf_counter()
            [hits] = collection.search(query, k, where, exact, effort)
            times[exact].append(1000 * (time.perf_counter() - started))
            scores[exact] = [hit.score for hit in hits]
        wanted += len(scores[True])
        if scores[True]:
            found += sum(score >= scores[True][-1] - TIE for score in scores[False])
    recall = found / wanted if wanted else 1.0
    return Recall(recall, float(np.median(times[False])), float(np.median(times[True])))
