"""The known relevant items of each query, and the integer identities that losses compare.

Queries are identified by their text, items by their id. Identities are 63-bit hashes, so that all processes agree on
them without a shared dictionary (the probability of a collision among 10^8 ids is below 0.1 %).
"""

import hashlib

import numpy as np


def identity(*parts: str) -> int:
    """Hash texts to a non-negative 63-bit integer.

    >>> identity("a", "b") == identity("a", "b") != identity("ab", "")
    True
    """
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def query_identity(query: str) -> int:
    """Return the identity of a query: its text without case and spacing.

    >>> query_identity("Red  coat") == query_identity("red coat")
    True
    """
    return identity(" ".join(query.lower().split()))


class KnownPositives:
    """A map of query identity → identities of all items that it is paired with.

    Args:
        queries: query identities of the pairs, [N] int64; a repeated pair counts once.
        items: item identities of the pairs, [N] int64.
    """

    def __init__(self, queries: np.ndarray, items: np.ndarray) -> None:
        pairs = np.unique(np.stack([queries, items], axis=1).astype(np.int64), axis=0)  # sorted by query
        self.queries, starts = np.unique(pairs[:, 0], return_index=True)
        self.items = pairs[:, 1]
        self.bounds = np.append(starts, len(pairs))

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
