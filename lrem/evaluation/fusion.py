"""Rank fusion: one run out of several, from their ranks alone."""

from collections.abc import Sequence
from math import fsum

from lrem.evaluation.metrics import Run


def rrf(runs: Sequence[Run], depth: int, k: int = 60) -> Run:
    """Fuse runs by reciprocal rank: an item's score is the sum of 1 / (k + rank) over the runs that contain it.

    The systems' scores need no common scale. Ties are broken by the item's best rank, then by its id; the order of
    `runs` affects only the order of the queries. Source: Cormack, Clarke and Büttcher 2009, including k = 60.

    Args:
        runs: may hold different queries; a query that is in one run only keeps that run's order.
        depth: items to keep per query. The runs should be at least as deep.

    >>> rrf([{"q": [("a", 9.0), ("b", 8.0)]}, {"q": [("b", 0.7), ("c", 0.6)]}], depth=2)["q"]
    [('b', 0.03252247488101534), ('a', 0.01639344262295082)]
    """
    query_ids = dict.fromkeys(query_id for run in runs for query_id in run)
    return {query_id: _fuse([run.get(query_id, ()) for run in runs], depth, k) for query_id in query_ids}


def _fuse(rankings: Sequence[Sequence[tuple[str, float]]], depth: int, k: int) -> list[tuple[str, float]]:
    ranks: dict[str, list[int]] = {}
    for hits in rankings:
        for rank, (item_id, _) in enumerate(hits, 1):
            ranks.setdefault(item_id, []).append(rank)
    # fsum rounds once, so the sum does not depend on the order of the runs, and ties stay ties.
    scores = {item_id: fsum(1 / (k + rank) for rank in found) for item_id, found in ranks.items()}
    order = sorted(ranks, key=lambda item_id: (-scores[item_id], min(ranks[item_id]), item_id))
    return [(item_id, scores[item_id]) for item_id in order[:depth]]
