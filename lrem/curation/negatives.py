"""Hard negatives from a retriever's ranking: close to the query, but not relevant. A pure rule."""

from collections.abc import Iterable, Sequence


def select_hard_negatives(
    ranking: Sequence[tuple[str, float]],
    positive_score: float,
    relevant: Iterable[str],
    window: tuple[int, int],
    margin: float,
    count: int,
) -> list[str]:
    """Return the first `count` items of a ranking that may serve as negatives.

    Args:
        ranking: (item id, cosine), best first.
        positive_score: the positive's cosine with the query.
        relevant: item ids known to be relevant; never selected.
        window: first and last rank considered, from 1; the very top contains unknown positives.
        margin: an item's cosine must be at least this far below the positive's.
        count: items to select.

    >>> select_hard_negatives([("a", .9), ("b", .8), ("c", .7), ("d", .6)], .85, {"c"}, (1, 4), .05, 2)
    ['b', 'd']
    """
    first, last = window
    excluded, limit = set(relevant), positive_score - margin + 1e-9
    usable = (item for item, score in ranking[first - 1 : last] if item not in excluded and score <= limit)
    return [item for item, _ in zip(usable, range(count), strict=False)]
