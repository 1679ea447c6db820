"""What is known to be relevant to each query, and the integer identities that losses compare.

Two queries are the same where their text is; two items where their id is. Identities are 63-bit hashes, so that
every process agrees on them without a common dictionary (among 10^8 ids two collide with odds below 0.1 %).
"""

import hashlib

import numpy as np


def identity(*parts: str) -> int:
    """A non-negative 63-bit hash of some texts.

    >>> identity("a", "b") == identity("a", "b") != identity("ab", "")
    True
    """
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def query_identity(query: str) -> int:
    """Identity of a query: its text, case and spacing aside.

    >>> query_identity("Red  coat") == query_identity("red coat")
    True
    """
    return identity(" ".join(query.lower().split()))


class KnownPositives:
    """Query identity → identities of every item that some row pairs it with.

    Args:
        queries, items: [N] int64, the pairs; repeated ones count once.
    """

    def __init__(self, queries: np.ndarray, items: np.ndarray) -> None:
        pairs = np.unique(np.stack([queries, items], axis=1).astype(np.int64), axis=0)  # sorted by query
        self.queries, starts = np.unique(pairs[:, 0], return_index=True)
        self.items = pairs[:, 1]
        self.bounds = np.append(starts, len(pairs))

    def of(self, query: int) -> np.ndarray:
        """Identities of the items relevant to one query, [P] int64; empty for a query that was never seen.

        >>> KnownPositives(np.array([5, 5, 7]), np.array([1, 2, 1])).of(5).tolist()
        [1, 2]
        """
        place = int(np.searchsorted(self.queries, query))
        if place == len(self.queries) or self.queries[place] != query:
            return np.empty(0, dtype=np.int64)
        return self.items[self.bounds[place] : self.bounds[place + 1]]

    def table(self, queries: list[int]) -> np.ndarray:
        """The same for a batch, [B, P] int64, filled up with -1."""
        rows = [self.of(query) for query in queries]
        out = np.full((len(rows), max(1, *(len(row) for row in rows))), -1, dtype=np.int64)
        for i, row in enumerate(rows):
            out[i, : len(row)] = row
        return out
