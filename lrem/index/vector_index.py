"""Faiss behind string ids: build once from vectors, search by inner product of unit vectors (cosine).

Knows Faiss and numpy; does not know files, models or who asks.
"""

from typing import Any, NamedTuple

import faiss
import numpy as np
import pyarrow as pa


class Hit(NamedTuple):
    """One found item: `score` is the cosine, `payload` the catalogue's columns beside the id."""

    item_id: str
    score: float
    payload: dict[str, Any]


class VectorIndex:
    """An immutable index over one catalogue.

    Args:
        items: the catalogue, a row an item: `item_id`, `title` and payload columns.
        index: a trained Faiss index whose i-th vector is row i of `items`.
        model: fingerprint of the model that made the vectors.
    """

    def __init__(self, items: pa.Table, index: faiss.Index, model: str) -> None:
        if index.ntotal != items.num_rows:
            raise ValueError(f"{index.ntotal} vectors for {items.num_rows} items: embed the catalogue again")
        self.items, self.index, self.model = items, index, model

    @classmethod
    def build(cls, items: pa.Table, vectors: np.ndarray, model: str, factory: str = "Flat") -> "VectorIndex":
        """Train and fill a Faiss index. vectors: [N, H] float32, unit length, in the order of `items`.

        Raises:
            ValueError: vectors are not finite and of unit length, or Faiss does not take `factory`.
        """
        norms = np.linalg.norm(vectors, axis=1)
        if not np.allclose(norms, 1, atol=1e-3):
            row = int(np.argmax(~np.isclose(norms, 1, atol=1e-3)))
            raise ValueError(f"the vector of item '{items['item_id'][row]}' has length {norms[row]:.3f}, not 1")
        try:
            index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
        except RuntimeError as error:
            raise ValueError(
                f"Faiss cannot build '{factory}' on {len(vectors)} vectors ({error}): use index.factory=Flat"
            ) from error
        index.add(vectors)
        return cls(items, index, model)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def dimension(self) -> int:
        """Length of a vector, H."""
        return int(self.index.d)

    def search_ids(self, queries: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        """The k best (item_id, cosine) of each query, best first. queries: [Q, H] float32."""
        scores, rows = self.index.search(np.ascontiguousarray(queries, np.float32), min(k, len(self)))
        ids = self.items["item_id"]
        return [
            [(ids[int(r)].as_py(), float(s)) for r, s in zip(row, score, strict=True) if r >= 0]
            for row, score in zip(rows, scores, strict=True)
        ]

    def search(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        """The k best items of each query with their payload, best first. queries: [Q, H] float32."""
        scores, rows = self.index.search(np.ascontiguousarray(queries, np.float32), min(k, len(self)))
        return [
            [self._hit(int(r), float(s)) for r, s in zip(row, score, strict=True) if r >= 0]
            for row, score in zip(rows, scores, strict=True)
        ]

    def _hit(self, row: int, score: float) -> Hit:
        payload = self.items.slice(row, 1).to_pylist()[0]
        return Hit(payload.pop("item_id"), score, payload)
