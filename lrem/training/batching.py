"""Which rows a step takes, and how they are cut into forwards: pure functions of seeds and lengths.

Knows row numbers and token counts; does not know what a row holds. Batches are drawn at random and only
their inside is sorted by length: batches of like lengths would make length a hint at the positive.
"""

import math
from collections.abc import Sequence

import numpy as np


def epoch_order(rows: int, seed: int, epoch: int, rank: int) -> np.ndarray:
    """The order in which one rank visits its `rows` in one epoch: a permutation [rows] int64."""
    return np.random.default_rng([seed, epoch, rank]).permutation(rows)


def steps_per_epoch(rows: int, workers: int, batch_size: int) -> int:
    """Steps of an epoch over `rows` of the whole corpus: the same number for every rank.

    >>> steps_per_epoch(rows=101, workers=2, batch_size=25)
    3
    """
    return math.ceil(math.ceil(rows / workers) / batch_size)


def step_rows(order: np.ndarray, steps: int, step: int) -> np.ndarray:
    """The part of `order` that step 0 … steps-1 of the epoch takes; parts differ by at most one row.

    >>> [step_rows(np.arange(5), 2, step).tolist() for step in (0, 1)]
    [[0, 1, 2], [3, 4]]
    """
    return np.array_split(order, steps)[step]


def chunk_by_length(lengths: Sequence[int], tokens: int, at_least: int = 1) -> list[list[int]]:
    """Rows grouped by like length, each group's padded size (rows × longest) at most `tokens`.

    A row longer than that stands alone. With `at_least` the largest groups are halved until there are so
    many, or until every row stands alone.

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
