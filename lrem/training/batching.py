"""Which rows a step takes, and how they are split into forwards: pure functions of seeds and lengths.

Batches are drawn at random, and only their rows are sorted by length: if a batch had similar lengths throughout,
length would be a hint at the positive.
"""

import math
from collections.abc import Sequence

import numpy as np


def epoch_order(rows: int, seed: int, epoch: int, rank: int) -> np.ndarray:
    """Return the order in which one rank visits its `rows` in one epoch, a permutation [rows] int64."""
    return np.random.default_rng([seed, epoch, rank]).permutation(rows)


def steps_per_epoch(rows: int, workers: int, batch_size: int) -> int:
    """Return the steps of an epoch over `rows` of the whole corpus, the same number for every rank.

    >>> steps_per_epoch(rows=101, workers=2, batch_size=25)
    3
    """
    return math.ceil(math.ceil(rows / workers) / batch_size)


def step_rows(order: np.ndarray, steps: int, step: int) -> np.ndarray:
    """Return the slice of `order` for step 0 … steps-1 of the epoch; slices differ by at most one row.

    >>> [step_rows(np.arange(5), 2, step).tolist() for step in (0, 1)]
    [[0, 1, 2], [3, 4]]
    """
    return np.array_split(order, steps)[step]


def chunk_by_length(lengths: Sequence[int], tokens: int, at_least: int = 1) -> list[list[int]]:
    """Group rows of similar length, with at most `tokens` padded tokens (rows × longest) per group.

    A longer row is alone in its group. If there are fewer than `at_least` groups, the largest are halved until there
    are enough, or until every row is alone.

    >>> chunk_by_length([5, 2, 2, 9], tokens=15)
    [[1, 2, 0], [3]]
    >>> chunk_by_length([5, 2, 2, 9], tokens=15, at_least=3)
    [[1], [2, 0], [3]]
    """
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if groups and (len(groups[-1]) + 1) * lengths[row] <= tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    while len(groups) < at_least and any(len(group) > 1 for group in groups):
        i = max(range(len(groups)), key=lambda i: len(groups[i]))
        half = len(groups[i]) // 2
        groups[i : i + 1] = [groups[i][:half], groups[i][half:]]
    return groups
