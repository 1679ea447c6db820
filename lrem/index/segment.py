"""The searchable part of a collection, in memory: a Faiss index, the payload columns and the tombstones.

Position i of each belongs to one row of the store; rows ascend. The owner must not write while a search runs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrem.index.ann import Ann, Fetch
from lrem.index.columns import Columns, GrowingArray
from lrem.index.filters import Filter


class Segment:
    """Rows of a store, searchable.

    Args:
        ann: the index with the vectors of `rows`.
        built_for: number of rows that the index's structure was chosen for.
        rows: [N] int64, ascending; they are tombstones until `attach_payloads`.
    """

    def __init__(self, ann: Ann, built_for: int = 0, rows: np.ndarray | None = None) -> None:
        self.ann, self.columns = ann, Columns()
        self._rows, self._alive = GrowingArray(np.int64), GrowingArray(bool)
        if rows is not None:
            self._rows.extend(rows)
            self._alive.extend(np.zeros(len(rows), bool))
        self.live = 0  # rows that are not tombstones
        self.built_for = built_for
        self.last_drop: int | None = None  # newest deletion of the store that was applied, if known

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> np.ndarray:
        """[N] int64, the row at each position, including tombstones."""
        return self._rows.values

    @property
    def last_row(self) -> int:
        """The newest row, 0 before the first."""
        return int(self._rows.values[-1]) if len(self) else 0

    @property
    def tombstones(self) -> int:
        """The number of deleted rows that still have a position."""
        return len(self) - self.live

    def append(self, rows: Sequence[int], payloads: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> None:
        """Add rows, ascending and newer than all before. vectors: [N, H] float32."""
        first = len(self)
        self.ann.add(vectors)
        self._rows.extend(rows)
        self._alive.extend(np.zeros(len(rows), bool))
        self._activate(np.arange(first, len(self)), payloads)

    def attach_payloads(self, rows: Sequence[int], payloads: Sequence[Mapping[str, Any]]) -> None:
        """Make rows live whose vectors are already in the index. Raises KeyError if one is not."""
        positions = np.searchsorted(self.rows, rows)
        if not np.array_equal(self.rows[positions], rows):
            raise KeyError("a row is not in the index")
        self._activate(positions, payloads)

    def _activate(self, positions: np.ndarray, payloads: Sequence[Mapping[str, Any]]) -> None:
        self.columns.add(positions.tolist(), payloads)
        self._alive.values[positions] = True
        self.live += len(positions)

    def drop(self, rows: Sequence[int]) -> None:
        """Turn rows into tombstones; unknown rows and tombstones are ignored."""
        positions = np.searchsorted(self.rows, rows)
        known = positions < len(self)
        known[known] = self.rows[positions[known]] == np.asarray(rows)[known]
        positions = positions[known]
        self.live -= int(self._alive.values[positions].sum())
        self._alive.values[positions] = False

    def mask(self, condition: Filter | None) -> np.ndarray | None:
        """Return [N] bool, which positions are live and match, or None if all are."""
        if condition is None:
            return None if self.tombstones == 0 else self._alive.values
        return self.columns.mask(condition, len(self)) & self._alive.values

    def count(self, condition: Filter | None) -> int:
        """Return the number of live rows that match."""
        mask = self.mask(condition)
        return self.live if condition is None or mask is None else int(mask.sum())

    def search(
        self,
        queries: np.ndarray,
        k: int,
        condition: Filter | None,
        fetch: Fetch,
        exact: bool = False,
        effort: float = 1.0,
    ) -> list[list[tuple[int, float]]]:
        """Return the k best (row, score) of each query among the live rows that match, best first.

        Args:
            queries: [Q, H] float32.
            fetch: rows [N] → their vectors [N, H], for an index that does not hold them.
            exact: compare with every matching row.
            effort: how far an approximate structure searches, as a multiple of the default.
        """
        rows = self.rows
        fetch_positions: Fetch = lambda positions: fetch(rows[positions])  # noqa: E731
        scores, matches = self.ann.search(queries, k, self.mask(condition), fetch_positions, exact, effort)
        return [
            [(int(rows[p]), float(s)) for p, s in zip(positions, line, strict=True) if p >= 0]
            for positions, line in zip(matches.tolist(), scores.tolist(), strict=True)
        ]
