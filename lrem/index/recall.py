"""Recall and latency of a collection's search, measured against its own exact search.

Measure with real queries: random vectors are harder.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lrem.index.collection import Collection

TIE = 1e-6  # cosines closer than this are equal


class Recall(NamedTuple):
    """recall@k, and the median milliseconds of one query, approximate and exact."""

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
    """Search each query approximately and exactly, one at a time.

    recall@k is the share of exact hits whose score the approximate hits reach, so either of two items with equal
    scores counts; 1.0 if nothing matches.

    Args:
        queries: [Q, H] float32, Q ≥ 1.
        effort: as in `Collection.search`.
    """
    reached, expected = 0, 0
    times: dict[bool, list[float]] = {False: [], True: []}
    for query in queries[:, None]:
        scores = {}
        for exact in (False, True):
            started = time.perf_counter()
            [hits] = collection.search(query, k, where, exact, effort)
            times[exact].append(1000 * (time.perf_counter() - started))
            scores[exact] = [hit.score for hit in hits]
        expected += len(scores[True])
        if scores[True]:
            reached += sum(score >= scores[True][-1] - TIE for score in scores[False])
    recall = reached / expected if expected else 1.0
    return Recall(recall, float(np.median(times[False])), float(np.median(times[True])))
