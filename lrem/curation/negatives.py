"""Hard negatives out of a retriever's ranking: close to the query, and not relevant. A pure rule."""

from collections.abc import Iterable, Sequence


def select(
    ranking: Sequence[tuple[str, float]],
    positive_score: float,
    relevant: Iterable[str],
    window: tuple[int, int],
    margin: float,
    count: int,
) -> list[str]:
    """The first `count` usable items of a ranking.

    Args:
        ranking: (item id, cosine), best first. positive_score: the positive's cosine with the query.
        relevant: item ids known to be relevant; never taken.
        window: [first, last] rank, from 1, that is looked at: the very top holds unknown positives.
        margin: an item counts only where its cosine is below the positive's by this much.

    >>> select([("a", .9), ("b", .8), ("c", .7), ("d", .6)], .85, {"c"}, (1, 4), .05, 2)
    ['b', 'd']
    """
    first, last = window
    refused, limit = set(relevant), positive_score - margin + 1e-9
    usable = (item for item, score in ranking[first - 1 : last] if item not in refused and score <= limit)
    return [item for item, _ in zip(usable, range(count), strict=False)]
