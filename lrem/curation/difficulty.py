"""How badly a retriever serves a query, and what that makes of it. Pure functions of rankings and words."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from lrem.data.words import content

BINS = 10
SHOWN = 10  # results whose titles stand in for those of known items


class Difficulty(NamedTuple):
    """How a query is served.

    recall: how many of its known items are within the top k, as a share of those that k results can hold; None where
    none is known. margin: best score less the k-th, as a share of the best. overlap: share of the query's words that
    the titles of its known items, else of its top results, hold.
    """

    recall: float | None
    margin: float
    overlap: float


def measure(
    query: str, ranking: Sequence[tuple[str, float]], relevant: Collection[str], titles: Sequence[str], k: int
) -> Difficulty:
    """Difficulty of one query.

    Args:
        ranking: (item id, score), best first, cut at k; with fewer than k, the k-th score counts as 0.
        titles: of the relevant items, else of the top results.

    >>> measure("warm coat", [("a", 2.0), ("b", 1.0)], {"b", "c"}, ["red coat"], 2)
    Difficulty(recall=0.5, margin=0.5, overlap=0.5)
    >>> measure("coat", [("a", 2.0), ("b", 1.0)], {"a", "b", "c", "d"}, ["coat"], 2).recall
    1.0
    """
    found = {item for item, _ in ranking}
    recall = len(found.intersection(relevant)) / min(k, len(relevant)) if relevant else None
    best, last = ranking[0][1] if ranking else 0.0, ranking[k - 1][1] if len(ranking) >= k else 0.0
    margin = max(0.0, (best - last) / abs(best)) if best else 0.0
    asked = set(content(query))
    known = {word for title in titles for word in content(title)}
    return Difficulty(recall, margin, len(asked & known) / len(asked) if asked else 0.0)


def telling_titles(
    ranking: Sequence[tuple[str, float]], relevant: Collection[str], titles: Mapping[str, str]
) -> list[str]:
    """The titles that a query's words are looked for in: of its relevant items, else of its top results.

    >>> telling_titles([("a", 2.0), ("b", 1.0)], set(), {"a": "red coat", "b": "hat"})
    ['red coat', 'hat']
    """
    return [titles[item] for item in sorted(relevant) or [item for item, _ in ranking[:SHOWN]]]


def is_hard(
    difficulty: Difficulty, recall_below: float | None, margin_below: float | None, overlap_below: float | None
) -> bool:
    """Whether any threshold that is set says so; where none can, none being set or known, every query is.

    >>> is_hard(Difficulty(None, 0.5, 0.2), 0.7, None, 0.5), is_hard(Difficulty(0.9, 0.5, 0.2), 0.7, None, None)
    (True, False)
    """
    limits = (recall_below, margin_below, overlap_below)
    below = [v < limit for v, limit in zip(difficulty, limits, strict=True) if v is not None and limit is not None]
    return any(below) or not below


def histogram(values: Sequence[float | None]) -> list[int]:
    """Counts in ten equal bins of 0 to 1, then those of None.

    >>> histogram([0.0, 0.05, 1.0, None])
    [2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    """
    counts = [0] * (BINS + 1)
    for value in values:
        counts[BINS if value is None else min(BINS - 1, int(value * BINS))] += 1
    return counts
