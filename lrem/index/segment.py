"""What a collection searches in: a Faiss index, the payload in columns and the tombstones, all in memory.

Position i of each belongs to one row of the store; rows ascend. Knows how to find; does not know how items are kept,
nor who writes: its owner sees to it that nothing is written while it searches.
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
        ann: with the vectors of `rows`.
        built_for: how many rows its structure was chosen for.
        rows: [N] int64, ascending; rows without an entry later taken in by `describe` are tombstones.
    """

    def __init__(self, ann: Ann, built_for: int = 0, rows: np.ndarray | None = None) -> None:
        self.ann, self.columns = ann, Columns()
        self._rows, self._alive = GrowingArray(np.int64), GrowingArray(bool)
        if rows is not None:
            self._rows.extend(rows)
            self._alive.extend(np.zeros(len(rows), bool))
        self.live = 0  # rows that are no tombstones
        self.built_for = built_for  # rows that the index's structure was chosen for
        self.last_drop: int | None = None  # the store's newest deletion that was taken in, where that is known

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> np.ndarray:
        """[N] int64, the row at each position, tombstones among them."""
        return self._rows.values

    @property
    def last_row(self) -> int:
        """The newest row that was taken in, 0 before the first."""
        return int(self._rows.values[-1]) if len(self) else 0

    @property
    def dead(self) -> int:
        """How many positions are tombstones."""
        return len(self) - self.live

    def take(self, rows: Sequence[int], payloads: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> None:
        """Take in new rows, ascending and newer than all before. vectors: [N, H] float32."""
        first = len(self)
        self.ann.add(vectors)
        self._rows.extend(rows)
        self._alive.extend(np.zeros(len(rows), bool))
        self._describe(np.arange(first, len(self)), payloads)

    def describe(self, rows: Sequence[int], payloads: Sequence[Mapping[str, Any]]) -> None:
        """Bring rows to life whose vectors are in the index already. Raises KeyError where one is not."""
        positions = np.searchsorted(self.rows, rows)
        if not np.array_equal(self.rows[positions], rows):
            raise KeyError("a row is not in the index")
        self._describe(positions, payloads)

    def _describe(self, positions: np.ndarray, payloads: Sequence[Mapping[str, Any]]) -> None:
        self.columns.add(positions.tolist(), payloads)
        self._alive.values[positions] = True
        self.live += len(positions)

    def drop(self, rows: Sequence[int]) -> None:
        """Make tombstones of rows; those that are none of its own, or are dropped already, are passed over."""
        positions = np.searchsorted(self.rows, rows)
        known = positions < len(self)
        known[known] = self.rows[positions[known]] == np.asarray(rows)[known]
        positions = positions[known]
        self.live -= int(self._alive.values[positions].sum())
        self._alive.values[positions] = False

    def mask(self, wanted: Filter | None) -> np.ndarray | None:
        """[N] bool, the positions that live and match; None where that is all of them."""
        if wanted is None:
            return None if self.dead == 0 else self._alive.values
        return self.columns.mask(wanted, len(self)) & self._alive.values

    def count(self, wanted: Filter | None) -> int:
        """How many live rows match."""
        mask = self.mask(wanted)
        return self.live if wanted is None or mask is None else int(mask.sum())

    def search(
        self,
        queries: np.ndarray,
        k: int,
        wanted: Filter | None,
        fetch: Fetch,
        exact: bool = False,
        effort: float = 1.0,
    ) -> list[list[tuple[int, float]]]:
        """The k best (row, score) of each query among the live rows that match, best first.

        Args:
            queries: [Q, H] float32.
            fetch: rows [N] → their vectors [N, H], asked where the index does not keep them.
            exact: compare with every row that is allowed.
            effort: how far an approximate structure searches, in multiples of what is usual.
        """
        rows = self.rows
        given: Fetch = lambda positions: fetch(rows[positions])  # noqa: E731
        scores, found = self.ann.search(queries, k, self.mask(wanted), given, exact, effort)
        return [
            [(int(rows[p]), float(s)) for p, s in zip(positions, line, strict=True) if p >= 0]
            for positions, line in zip(found.tolist(), scores.tolist(), strict=True)
        ]
