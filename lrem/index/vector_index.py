"""Faiss behind string ids: build once from vectors, search by inner product of unit vectors (cosine).

Knows Faiss and numpy; does not know files, models or who asks.
"""

from functools import cached_property
from typing import Any, NamedTuple

import faiss
import numpy as np
import pyarrow as pa

from lrem.index.ann import Ann, BuildError
from lrem.index.columns import Columns
from lrem.index.filters import Filter

BATCH = 50_000  # rows turned into Python values at a time


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
        factory: the Faiss factory string that `index` was made with.
    """

    def __init__(self, items: pa.Table, index: faiss.Index, model: str, factory: str = "Flat") -> None:
        if index.ntotal != items.num_rows:
            raise ValueError(f"{index.ntotal} vectors for {items.num_rows} items: embed the catalogue again")
        self.items, self.index, self.model, self.factory = items, index, model, factory
        self.ann = Ann(index, factory)
        if (lists := faiss.try_extract_index_ivf(index)) is not None:
            lists.make_direct_map()  # so that a vector can be asked for by its row

    @classmethod
    def build(cls, items: pa.Table, vectors: np.ndarray, model: str, factory: str = "Flat") -> "VectorIndex":
        """Train and fill a Faiss index. vectors: [N, H] float32, unit length, in the order of `items`.

        Raises:
            BuildError: vectors are not finite and of unit length, or Faiss does not take `factory`.
        """
        norms = np.linalg.norm(vectors, axis=1)
        if not np.allclose(norms, 1, atol=1e-3):
            row = int(np.argmax(~np.isclose(norms, 1, atol=1e-3)))
            raise BuildError(f"the vector of item '{items['item_id'][row]}' has length {norms[row]:.3f}, not 1")
        ann = Ann.build(vectors.shape[1], factory, lambda _: vectors)
        ann.add(vectors)
        return cls(items, ann.index, model, factory)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def dimension(self) -> int:
        """Length of a vector, H."""
        return int(self.index.d)

    def search_ids(self, queries: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        """The k best (item_id, cosine) of each query, best first. queries: [Q, H] float32."""
        ids = self.ids
        return [[(ids[row], score) for row, score in hits] for hits in self._rows(queries, k)]

    def search(self, queries: np.ndarray, k: int, where: Filter | None = None) -> list[list[Hit]]:
        """The k best items of each query with their payload, best first, among those that match.

        Args:
            queries: [Q, H] float32.
            where: a filter over the payload, see filters.py.
        """
        found = self._rows(queries, k, where)
        rows = pa.array([row for hits in found for row, _ in hits], pa.int64())
        payloads = iter(self.items.take(rows).to_pylist())
        return [[_hit(next(payloads), score) for _, score in hits] for hits in found]

    @cached_property
    def ids(self) -> list[str]:
        """Item ids in vector order."""
        return list(self.items["item_id"].to_pylist())

    @cached_property
    def columns(self) -> Columns:
        """The payload, as filters need it; made when it is first asked for."""
        columns = Columns()
        for start in range(0, len(self), BATCH):
            rows = self.items.drop_columns(["item_id"]).slice(start, BATCH).to_pylist()
            columns.add(range(start, start + len(rows)), rows)
        return columns

    def _rows(self, queries: np.ndarray, k: int, where: Filter | None = None) -> list[list[tuple[int, float]]]:
        mask = None if where is None else self.columns.mask(where, len(self))
        scores, rows = self.ann.search(queries, k, mask, self.index.reconstruct_batch)
        return [
            [(int(r), float(s)) for r, s in zip(row, score, strict=True) if r >= 0]  # -1: fewer were found
            for row, score in zip(rows, scores, strict=True)
        ]


def _hit(row: dict[str, Any], score: float) -> Hit:
    return Hit(row.pop("item_id"), score, row)
