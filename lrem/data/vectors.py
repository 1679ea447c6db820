"""Operations on embedding matrices: normalize, truncate, average."""

from collections.abc import Sequence

import numpy as np


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Scale each row of [N, H] to unit length, as float32.

    >>> normalize(np.array([[3.0, 4.0]])).round(2).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def truncate(vectors: np.ndarray, dimension: int | None) -> np.ndarray:
    """Return the first `dimension` numbers of unit vectors [N, H], rescaled to unit length; None or H: unchanged.

    Source: Matryoshka representation learning, https://arxiv.org/abs/2205.13147
    """
    return vectors if dimension is None or dimension == vectors.shape[1] else normalize(vectors[:, :dimension])


def group_means(vectors: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Return the mean direction of each group of consecutive rows, [G, H] of unit length.

    Args:
        vectors: [N, H], where N is the sum of `counts`.
        counts: rows in each group, at least 1.

    >>> group_means(np.eye(2), [1, 1]).tolist(), group_means(np.eye(2), [2]).round(2).tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [[0.7099999785423279, 0.7099999785423279]])
    """
    starts = np.cumsum([0, *counts[:-1]])
    return normalize(np.add.reduceat(vectors, starts, axis=0))
