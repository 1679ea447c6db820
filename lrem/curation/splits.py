"""Which queries are trained on and which are kept apart: by groups of near-duplicates, the same for the same seed.

Two queries are near-duplicates where their content words are the same set, or, from five words on, sets that one word
taken from one or from both makes equal (a Jaccard similarity of two thirds at least); whatever such steps connect is
one group. Knows texts; does not know what is done with the parts.
"""

from array import array
from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lrem.data.known_positives import identity
from lrem.data.words import content

LONG = 5  # words from which a query may lose one and still be the same


def groups(signed: Iterable[list[int]]) -> np.ndarray:
    """The number of each query's group of near-duplicates, [N] int32, from the `signatures` of all.

    >>> asked = ["red coats", "the red coat", "blue coat", "warm red wool coat men", "warm red coat men"]
    >>> groups(map(signatures, asked)).tolist()
    [0, 0, 1, 2, 2]
    """
    rows, keys = array("q"), array("q")  # 8 bytes each: of a million queries 50 MB
    size = 0
    for found in signed:
        rows.extend([size] * len(found))
        keys.extend(found)
        size += 1
    _, columns = np.unique(np.frombuffer(keys, np.int64), return_inverse=True)
    places = np.frombuffer(rows, np.int64), size + columns
    graph = coo_matrix((np.ones(len(rows), np.int8), places), shape=(size + columns.max() + 1,) * 2)
    labels = connected_components(graph, directed=False)[1][:size]
    return np.unique(labels, return_inverse=True)[1].astype(np.int32)


def signatures(query: str) -> list[int]:
    """Hashes of the sets of content words that would make another query its near-duplicate."""
    stems = sorted(set(content(query))) or [query.strip().lower()]
    sets = [stems] + ([stems[:i] + stems[i + 1 :] for i in range(len(stems))] if len(stems) >= LONG else [])
    return [identity(*one) for one in sets]


def draw(query_id: str, seed: int) -> float:
    """A number in [0, 1) that only the id and the seed decide."""
    return identity(str(seed), query_id) / 2**63


def group_draws(keys: np.ndarray, drawn: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One draw for all queries of a group, that of its member with the smallest key, whatever the order; [N] float64.

    Args:
        keys: [N] int64, `identity` of each query id. drawn: [N], `draw` of each. labels: [N], as `groups` gives them.

    >>> group_draws(np.array([5, 3, 9]), np.array([0.1, 0.2, 0.3]), np.array([0, 0, 1])).tolist()
    [0.2, 0.2, 0.3]
    """
    order = np.lexsort((keys, labels))
    first = order[np.unique(labels[order], return_index=True)[1]]
    return drawn[first][labels]


def part_of(draw: float, rl_share: float, dev_share: float, test_share: float) -> str:
    """cold_start, rl, dev or test, by shares of [0, 1).

    >>> [part_of(draw, 0.25, 0.1, 0.1) for draw in (0.1, 0.5, 0.85, 0.95)]
    ['rl', 'cold_start', 'test', 'dev']
    """
    if draw < rl_share:
        return "rl"
    if draw >= 1 - dev_share:
        return "dev"
    return "test" if draw >= 1 - dev_share - test_share else "cold_start"
