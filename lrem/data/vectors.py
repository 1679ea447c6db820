"""Embeddings as arrays: brought to unit length, shortened, averaged.

Knows numpy; does not know what made them.
"""

from collections.abc import Sequence

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """[N, H] brought to unit length, float32.

    >>> unit(np.array([[3.0, 4.0]])).round(2).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def shorten(vectors: np.ndarray, length: int | None) -> np.ndarray:
    """The first `length` numbers of unit vectors [N, H], of unit length again; None or H leaves them.

    Source: Matryoshka representation learning, https://arxiv.org/abs/2205.13147
    """
    return vectors if length is None or length == vectors.shape[1] else unit(vectors[:, :length])


def means(vectors: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """The mean direction of each group of rows, [G, H] of unit length; the groups follow one another.

    Args:
        vectors: [N, H], N the sum of `counts`, each of which is 1 or more.

    >>> means(np.eye(2), [1, 1]).tolist(), means(np.eye(2), [2]).round(2).tolist()
    ([[1.0, 0.0], [0.0, 1.0]], [[0.7099999785423279, 0.7099999785423279]])
    """
    starts = np.cumsum([0, *counts[:-1]])
    return unit(np.add.reduceat(vectors, starts, axis=0))
