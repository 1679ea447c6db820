"""Which rows a step takes, and how they are split into forwards: pure functions of seeds and lengths.

Batches are drawn at random, and only their rows are sorted by length: if a batch had similar lengths throughout,
length would be a hint at the positive.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FORWARD_COST = 1000  # estimated fixed cost of a forward and its backward on a CPU, in tokens


class EpochRows(NamedTuple):
    """How many rows of the whole corpus an epoch visits, and at most how many of each query; None: all."""

    total: int
    per_query: int | None = None

    @classmethod
    def of(cls, query_keys: np.ndarray, per_query: int | None) -> "EpochRows":
        """Count the rows that an epoch visits.

        >>> EpochRows.of(np.array([5, 7, 5, 5]), 2)
        EpochRows(total=3, per_query=2)
        """
        if per_query is None:
            return cls(len(query_keys))
        counts = np.unique(query_keys, return_counts=True)[1]
        return cls(int(np.minimum(counts, per_query).sum()), per_query)

    @property
    def surplus(self) -> int:
        """Return by how many rows a rank may exceed its equal share: a query's rows are not divided between ranks."""
        return 0 if self.per_query is None else self.per_query - 1

    def min_per_rank(self) -> int:
        """Return the fewest rows per rank with which no rank runs out before the others, for batches of 2 or more."""
        return 2 + 3 * self.surplus


def shard_bounds(query_keys: np.ndarray, per_query: int, ranks: int) -> list[int]:
    """Return where to divide rows that are sorted by query, so that all ranks visit as many rows in an epoch.

    A query's rows stay together, so the ranks' numbers of visited rows differ by less than `per_query` from equal ones.

    Args:
        query_keys: [N] int64, ascending.

    >>> shard_bounds(np.array([1, 1, 1, 2, 3, 4]), per_query=1, ranks=2)
    [4]
    """
    _, starts, counts = np.unique(query_keys, return_index=True, return_counts=True)
    visited = np.concatenate([[0], np.minimum(counts, per_query).cumsum()])  # before each query, and in all
    targets = [int(visited[-1]) * rank // ranks for rank in range(1, ranks)]
    ends = np.append(starts, len(query_keys))
    return [int(bound) for bound in ends[np.searchsorted(visited, targets)]]


def visited_rows(query_keys: np.ndarray, per_query: int | None, epoch: int) -> np.ndarray:
    """Return the rows that an epoch visits, [V] int64: of each query `per_query`, the next ones in every epoch.

    With one row per query it is its row (epoch + key) mod n: after n epochs each has been visited once.

    Args:
        query_keys: [N] int64, the query of each row.
        per_query: None: all rows in every epoch.

    >>> keys = np.array([8, 7, 8])
    >>> [visited_rows(keys, 1, epoch).tolist() for epoch in (0, 1, 2)]
    [[1, 0], [1, 2], [1, 0]]
    """
    if per_query is None:
        return np.arange(len(query_keys))
    by_query = np.argsort(query_keys, kind="stable")
    keys, starts, counts = np.unique(query_keys[by_query], return_index=True, return_counts=True)
    taken = np.minimum(counts, per_query)
    query = np.repeat(np.arange(len(keys)), taken)  # [V]
    place = np.arange(len(query)) - np.repeat(taken.cumsum() - taken, taken)  # [V] among the rows taken of a query
    turn = (keys % counts)[query] + epoch * per_query + place
    return by_query[starts[query] + turn % counts[query]]


def epoch_order(rows: np.ndarray, seed: int, epoch: int, rank: int) -> np.ndarray:
    """Return the order in which one rank visits `rows` in one epoch, a permutation of them."""
    return np.random.default_rng([seed, epoch, rank]).permutation(rows)


def steps_per_epoch(epoch: EpochRows, workers: int, batch_size: int) -> int:
    """Return the steps of an epoch, the same number for every rank.

    >>> steps_per_epoch(EpochRows(101), workers=2, batch_size=25)
    3
    """
    return math.ceil((math.ceil(epoch.total / workers) + epoch.surplus) / batch_size)


def step_rows(order: np.ndarray, steps: int, step: int) -> np.ndarray:
    """Return the slice of `order` for step 0 … steps-1 of the epoch; slices differ by at most one row.

    >>> [step_rows(np.arange(5), 2, step).tolist() for step in (0, 1)]
    [[0, 1, 2], [3, 4]]
    """
    return np.array_split(order, steps)[step]


def chunk_by_length(
    lengths: Sequence[int], tokens: int, at_least: int = 1, forward_cost: int = FORWARD_COST
) -> list[list[int]]:
    """Group rows of similar length, with at most `tokens` padded tokens (rows × longest) per group.

    They minimise the padding plus `forward_cost` tokens per group. A row that is too long is alone in its group. If
    there are fewer than `at_least` groups, the largest are halved until there are enough, or until every row is alone.

    >>> chunk_by_length([500, 20, 20, 900], tokens=1500)
    [[1, 2, 0], [3]]
    >>> chunk_by_length([500, 20, 20, 900], tokens=1500, at_least=3)
    [[1], [2, 0], [3]]
    >>> [len(group) for group in chunk_by_length([20] * 100 + [200] * 10, tokens=10**6)]
    [100, 10]
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    groups = [order[start:end] for start, end in _least_padding([lengths[row] for row in order], tokens, forward_cost)]
    while len(groups) < at_least and any(len(group) > 1 for group in groups):
        i = max(range(len(groups)), key=lambda i: len(groups[i]))
        half = len(groups[i]) // 2
        groups[i : i + 1] = [groups[i][:half], groups[i][half:]]
    return groups


def _least_padding(ascending: Sequence[int], tokens: int, forward_cost: int) -> list[tuple[int, int]]:
    """Return the (start, end) of groups of consecutive lengths, see `chunk_by_length`, by dynamic programming."""
    costs = np.zeros(len(ascending) + 1)  # of the best groups of the first rows
    starts = [0] * (len(ascending) + 1)  # of the last of these groups
    for end, longest in enumerate(ascending, start=1):
        first = max(0, end - max(1, tokens // longest))
        totals = costs[first:end] + longest * np.arange(end - first, 0, -1)
        starts[end] = first + int(totals.argmin())
        costs[end] = totals.min() + forward_cost
    groups, end = [], len(ascending)
    while end:
        groups.append((starts[end], end))
        end = starts[end]
    return groups[::-1]
