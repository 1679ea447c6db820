"""Whether a teacher's words help: the ranks of a query's relevant items with and without them."""

from collections.abc import Collection, Sequence


def mean_reciprocal_rank(ranking: Sequence[str], relevant: Collection[str]) -> float:
    """Return the mean of 1 / rank over the relevant items; an item outside the ranking counts as 0.

    >>> mean_reciprocal_rank(["a", "b", "c"], {"b", "x"})
    0.25
    """
    ranks = [rank for rank, item in enumerate(ranking, start=1) if item in relevant]
    return sum(1 / rank for rank in ranks) / len(relevant)


def words_help(without: Sequence[str], with_words: Sequence[str], relevant: Collection[str]) -> bool:
    """Return True if the relevant items rank higher, on the mean of 1 / rank, with the words than without.

    Source: MMEmb-R1 (arXiv 2604.06156), which keeps only the reasonings that change a ranking for the better.

    Args:
        without: the items that the query alone retrieves, best first.
        with_words: the items that the query and the words retrieve, best first.
        relevant: at least one.

    >>> words_help(["a", "b"], ["b", "a"], {"b"}), words_help(["a", "b"], ["a", "c"], {"a"})
    (True, False)
    """
    return mean_reciprocal_rank(with_words, relevant) > mean_reciprocal_rank(without, relevant)
