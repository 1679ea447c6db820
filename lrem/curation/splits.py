"""The split into cold start, RL, dev and test: by groups of near-duplicate queries, reproducible from a seed.

Two queries are near-duplicates if their sets of content words are equal, or, from five words on, if removing one word
from one or both makes them equal (a Jaccard similarity of at least two thirds). Chains of near-duplicates are one
group.
"""

from array import array
from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lrem.data.known_positives import identity
from lrem.data.words import content_words, normalize

MIN_WORDS_TO_DROP_ONE = 5  # content words from which queries that differ in one are near-duplicates


def near_duplicate_groups(signatures: Iterable[list[int]]) -> np.ndarray:
    """Return the number of each query's group, [N] int32, from the `near_duplicate_signatures` of each.

    >>> queries = ["red coats", "the red coat", "blue coat", "warm red wool coat men", "warm red coat men"]
    >>> near_duplicate_groups(map(near_duplicate_signatures, queries)).tolist()
    [0, 0, 1, 2, 2]
    """
    rows, hashes = array("q"), array("q")  # 8 bytes each: 50 MB for a million queries
    size = 0
    for query_signatures in signatures:
        rows.extend([size] * len(query_signatures))
        hashes.extend(query_signatures)
        size += 1
    _, columns = np.unique(np.frombuffer(hashes, np.int64), return_inverse=True)
    edges = np.frombuffer(rows, np.int64), size + columns  # query – signature, a bipartite graph
    graph = coo_matrix((np.ones(len(rows), np.int8), edges), shape=(size + columns.max() + 1,) * 2)
    labels = connected_components(graph, directed=False)[1][:size]
    return np.unique(labels, return_inverse=True)[1].astype(np.int32)


def near_duplicate_signatures(query: str) -> list[int]:
    """Return hashes of sets of content words; queries that share one are near-duplicates."""
    stems = sorted(set(content_words(query))) or [normalize(query).strip()]
    one_dropped = [stems[:i] + stems[i + 1 :] for i in range(len(stems))] if len(stems) >= MIN_WORDS_TO_DROP_ONE else []
    return [identity(*word_set) for word_set in [stems, *one_dropped]]


def split_draw(query_id: str, seed: int) -> float:
    """Return a pseudo-random number in [0, 1) that depends on the id and the seed alone."""
    return identity(str(seed), query_id) / 2**63


def group_draws(keys: np.ndarray, draws: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Give all queries of a group the draw of its member with the smallest key, whatever the order; [N] float64.

    Args:
        keys: `identity` of each query id, [N] int64.
        draws: `split_draw` of each query id, [N] float64.
        labels: the result of `near_duplicate_groups`, [N] int32.

    >>> group_draws(np.array([5, 3, 9]), np.array([0.1, 0.2, 0.3]), np.array([0, 0, 1])).tolist()
    [0.2, 0.2, 0.3]
    """
    order = np.lexsort((keys, labels))
    first = order[np.unique(labels[order], return_index=True)[1]]
    return draws[first][labels]


def split_for_draw(draw: float, rl_share: float, dev_share: float, test_share: float) -> str:
    """Return cold_start, rl, dev or test: the interval of [0, 1) that a draw falls into.

    >>> [split_for_draw(draw, 0.25, 0.1, 0.1) for draw in (0.1, 0.5, 0.85, 0.95)]
    ['rl', 'cold_start', 'test', 'dev']
    """
    if draw < rl_share:
        return "rl"
    if draw >= 1 - dev_share:
        return "dev"
    return "test" if draw >= 1 - dev_share - test_share else "cold_start"
