"""How badly a retriever serves a query, and whether that makes it hard. Pure functions of rankings and words."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from lrem.data.words import content_words

BINS = 10
REFERENCE_RESULTS = 10  # top results whose titles replace those of known items


class QueryDifficulty(NamedTuple):
    """How well a query is served; lower is harder.

    Attributes:
        recall: known items in the top k, as a share of those that k results can hold; None without known items.
        margin: best score minus the k-th, as a share of the best.
        overlap: share of the query's content words in the titles of its known items, or else of its top results.
    """

    recall: float | None
    margin: float
    overlap: float


def measure_difficulty(
    query: str, ranking: Sequence[tuple[str, float]], relevant: Collection[str], titles: Sequence[str], k: int
) -> QueryDifficulty:
    """Measure the difficulty of one query.

    Args:
        query: its text.
        ranking: (item id, score), best first, cut at k; with fewer than k results, the k-th score counts as 0.
        relevant: ids of its known items.
        titles: those of the known items, or else of the top results; see `reference_titles`.
        k: results that a user looks at.

    >>> measure_difficulty("warm coat", [("a", 2.0), ("b", 1.0)], {"b", "c"}, ["red coat"], 2)
    QueryDifficulty(recall=0.5, margin=0.5, overlap=0.5)
    >>> measure_difficulty("coat", [("a", 2.0), ("b", 1.0)], {"a", "b", "c", "d"}, ["coat"], 2).recall
    1.0
    """
    retrieved = {item for item, _ in ranking}
    recall = len(retrieved.intersection(relevant)) / min(k, len(relevant)) if relevant else None
    best, last = ranking[0][1] if ranking else 0.0, ranking[k - 1][1] if len(ranking) >= k else 0.0
    margin = max(0.0, (best - last) / abs(best)) if best else 0.0
    query_words = set(content_words(query))
    title_words = {word for title in titles for word in content_words(title)}
    return QueryDifficulty(recall, margin, len(query_words & title_words) / len(query_words) if query_words else 0.0)


def reference_titles(
    ranking: Sequence[tuple[str, float]], relevant: Collection[str], titles: Mapping[str, str]
) -> list[str]:
    """Return the titles to compare a query's words with: of its relevant items, or else of its top results.

    >>> reference_titles([("a", 2.0), ("b", 1.0)], set(), {"a": "red coat", "b": "hat"})
    ['red coat', 'hat']
    """
    return [titles[item] for item in sorted(relevant) or [item for item, _ in ranking[:REFERENCE_RESULTS]]]


def is_hard(
    difficulty: QueryDifficulty, recall_below: float | None, margin_below: float | None, overlap_below: float | None
) -> bool:
    """Return True if any measure is below its threshold, or if no measure can be compared with one.

    >>> is_hard(QueryDifficulty(None, 0.5, 0.2), 0.7, None, 0.5)
    True
    >>> is_hard(QueryDifficulty(0.9, 0.5, 0.2), 0.7, None, None)
    False
    """
    limits = (recall_below, margin_below, overlap_below)
    below = [v < limit for v, limit in zip(difficulty, limits, strict=True) if v is not None and limit is not None]
    return any(below) or not below


def histogram(values: Sequence[float | None]) -> list[int]:
    """Count values in ten equal bins of [0, 1], followed by the number of None.

    >>> histogram([0.0, 0.05, 1.0, None])
    [2, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    """
    counts = [0] * (BINS + 1)
    for value in values:
        counts[BINS if value is None else min(BINS - 1, int(value * BINS))] += 1
    return counts
