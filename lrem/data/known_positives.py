"""The known relevant items of each query, and the integer identities that losses compare.

Queries are identified by their text, items by their id. Identities are 63-bit hashes, so that all processes agree on
them without a shared dictionary (the probability of a collision among 10^8 ids is below 0.1 %).
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lrem.data.words import normalize


def identity(*parts: str) -> int:
    """Hash texts to a non-negative 63-bit integer.

    >>> identity("a", "b") == identity("a", "b") != identity("ab", "")
    True
    """
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def query_identity(query: str) -> int:
    """Return the identity of a query: its normalized text without spacing.

    >>> query_identity("Red  coat") == query_identity("red coat")
    True
    """
    return identity(" ".join(normalize(query).split()))


class KnownPositives:
    """A map of query identity → identities of all items that are known to be relevant to it.

    Args:
        queries: query identities of the pairs, [N] int64; a repeated pair counts once.
        items: item identities of the pairs, [N] int64.
    """

    def __init__(self, queries: np.ndarray, items: np.ndarray) -> None:
        order = np.lexsort((items, queries))
        queries, items = queries[order].astype(np.int64), items[order].astype(np.int64)
        new = np.ones(len(queries), dtype=bool)
        new[1:] = (queries[1:] != queries[:-1]) | (items[1:] != items[:-1])
        self.queries, starts = np.unique(queries[new], return_index=True)
        self.items = items[new]
        self.bounds = np.append(starts, len(self.items))

    @classmethod
    def of_rows(cls, rows: pa.Table) -> "KnownPositives":
        """Collect the positives of rendered rows, and the other items that these know to be relevant.

        Args:
            rows: `query_key` and `item_key` int64, `relevant_keys` list of int64, perhaps null.

        >>> rows = pa.table({"query_key": [5, 7], "item_key": [1, 2], "relevant_keys": [[1, 3], None]})
        >>> [KnownPositives.of_rows(rows).of(query).tolist() for query in (5, 7)]
        [[1, 3], [2]]
        """
        queries, items = rows["query_key"].to_numpy(), rows["item_key"].to_numpy()
        relevant = relevant_pairs(rows)
        return cls(np.concatenate([queries, relevant[0]]), np.concatenate([items, relevant[1]]))

    def of(self, query: int) -> np.ndarray:
        """Return the identities of one query's items, [P] int64; empty for an unknown query.

        >>> KnownPositives(np.array([5, 5, 7]), np.array([1, 2, 1])).of(5).tolist()
        [1, 2]
        """
        row = int(np.searchsorted(self.queries, query))
        if row == len(self.queries) or self.queries[row] != query:
            return np.empty(0, dtype=np.int64)
        return self.items[self.bounds[row] : self.bounds[row + 1]]

    def table(self, queries: list[int]) -> np.ndarray:
        """Return the items of a batch of queries, [B, P] int64, padded with -1."""
        rows = [self.of(query) for query in queries]
        out = np.full((len(rows), max(1, *(len(row) for row in rows))), -1, dtype=np.int64)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return out


def relevant_pairs(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return the (query, item) identities that the column `relevant_keys` of rendered rows adds, [R] int64 each."""
    lists = rows["relevant_keys"].combine_chunks()
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    items = pc.list_flatten(lists).to_numpy(zero_copy_only=False)
    return np.repeat(rows["query_key"].to_numpy(), counts), items.astype(np.int64)
