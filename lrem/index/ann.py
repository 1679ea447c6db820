"""Faiss behind positions 0, 1, 2, …: which structure for how many vectors, and how hard each has to search.

Knows Faiss; does not know ids, payloads or what was deleted: a caller hands in the mask of what may be found.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from lrem.errors import BuildError

EXACT_UP_TO = 50_000  # vectors that one thread compares in milliseconds
COMPRESS_FROM = 2_000_000  # beyond, whole vectors of 256 numbers and their graph take more than 2.5 GB
EF_CONSTRUCTION = 128
EF_SEARCH = 128
NPROBE, NPROBE_SHARE = 8, 1 / 32  # lists that are looked into: so many, or this share of them
RESCORED, RESCORED_FROM = 10, 100  # candidates for each wanted one and at least, where scores are approximate
SCANNED = 5_000  # allowed vectors that are compared exactly whatever their share
SCANNED_SHARE = 0.15  # and below which share: a graph would walk through masked vectors for the most part
NEIGHBOURS = 64  # of a query, to see which share of its surroundings a mask allows
WIDEN = 16  # a mask makes a search look at most so many times as far; where that is not enough all are compared
BLOCK = 65_536  # vectors compared at once
SAMPLE = 200_000  # vectors that a structure is trained on, or what it asks for

parameters: Any = faiss  # its type stubs lack the fields of search parameters

Fetch = Callable[[np.ndarray], np.ndarray]  # positions [N] → their vectors [N, H]
Found = tuple[np.ndarray, np.ndarray]  # scores [Q, k] float32, positions [Q, k] int64, −1 where fewer were found


def choose_factory(count: int, dimension: int, factory: str | None = None) -> tuple[str, str]:
    """The Faiss factory for `count` vectors, and why. A given factory stands once there is enough to train it.

    >>> choose_factory(1000, 256)
    ('Flat', '1000 vectors: exact search is fast up to 50000')
    >>> choose_factory(300_000, 256)[0], choose_factory(5_000_000, 256)[0], choose_factory(10, 256, "IVF64,Flat")[0]
    ('HNSW32', 'IVF8192,PQ128', 'Flat')

    Raises:
        BuildError: Faiss does not know the factory.
    """
    if factory is not None:
        if count >= (needed := training_size(dimension, factory)):
            return factory, "as configured"
        return "Flat", f"{count} vectors: '{factory}' is built from {needed} on"
    if count <= EXACT_UP_TO:
        return "Flat", f"{count} vectors: exact search is fast up to {EXACT_UP_TO}"
    if count < COMPRESS_FROM:
        return "HNSW32", f"{count} vectors: a graph is fast and fits in memory below {COMPRESS_FROM}"
    factory = f"IVF{usual_lists(count)},PQ{usual_parts(dimension)}"
    return factory, f"{count} vectors: compressed, then scored again from the stored vectors"


def usual_lists(count: int) -> int:
    """Return the inverted lists for `count` vectors: the power of two nearest to 4 √count.

    >>> usual_lists(5_000_000)
    8192
    """
    return int(2 ** round(np.log2(4 * np.sqrt(count))))


@lru_cache
def usual_parts(dimension: int) -> int:
    """Return the parts of a product quantizer: two dimensions per part, or the nearest larger divisor.

    >>> usual_parts(256), usual_parts(255)
    (128, 85)
    """
    return max(part for part in range(1, dimension // 2 + 1) if dimension % part == 0)


@lru_cache
def training_size(dimension: int, factory: str) -> int:
    """How many vectors Faiss wants to train a factory's index on: 39 for each centroid of its k-means.

    Raises:
        BuildError: Faiss does not know the factory.
    """
    index = _make(dimension, factory)
    if index.is_trained:
        _probe(index, factory)
        return 0
    inverted = faiss.try_extract_index_ivf(index)
    lists = [] if inverted is None else [inverted.nlist]
    bits = [int(n or 8) for n in re.findall(r"[PR]Q\d+(?:x(\d+))?", factory)]
    return 39 * max([*lists, *(2**n for n in bits), 32])


def _make(dimension: int, factory: str) -> faiss.Index:
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise BuildError(f"Faiss does not know '{factory}' ({_short(error)}): use index.factory=Flat") from error


class Ann:
    """An index by inner product.

    Args:
        index: empty and trained, or with vectors.
        factory: what it was made with.
    """

    def __init__(self, index: faiss.Index, factory: str) -> None:
        self.index, self.factory = index, factory

    @classmethod
    def build(cls, dimension: int, factory: str, sample: Callable[[int], np.ndarray]) -> "Ann":
        """Make and train an empty index.

        Args:
            sample: gives up to that many [N, H] float32 of what it will hold; asked if there is something to train.

        Raises:
            BuildError: Faiss does not take the factory, or the sample is too small for it.
        """
        index = _make(dimension, factory)
        if (graph := _as(index, faiss.IndexHNSW)) is not None:
            graph.hnsw.efConstruction = EF_CONSTRUCTION
        try:
            if not index.is_trained:
                vectors = sample(max(SAMPLE, training_size(dimension, factory)))
                index.train(np.ascontiguousarray(vectors, np.float32))
        except RuntimeError as error:
            raise BuildError(f"Faiss cannot build '{factory}' ({_short(error)}): use index.factory=Flat") from error
        return cls(index, factory)

    @classmethod
    def read(cls, file: Path, factory: str) -> "Ann":
        """Read what `write` wrote."""
        return cls(faiss.read_index(str(file)), factory)

    def write(self, file: Path) -> None:
        """Write the index as one file."""
        faiss.write_index(self.index, str(file))

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def add(self, vectors: np.ndarray) -> None:
        """Add [N, H] float32 at the next positions. Raises BuildError where Faiss cannot."""
        try:
            self.index.add(np.ascontiguousarray(vectors, np.float32))
        except RuntimeError as error:
            raise BuildError(
                f"Faiss cannot add to '{self.factory}' ({_short(error)}): use index.factory=Flat"
            ) from error

    def search(
        self,
        queries: np.ndarray,
        k: int,
        mask: np.ndarray | None,
        fetch: Fetch,
        exact: bool = False,
        effort: float = 1.0,
    ) -> Found:
        """The k best of each query with exact scores, best first; k is cut to what is allowed.

        Args:
            queries: [Q, H] float32, finite.
            mask: [len(self)] bool, which positions may be found; None: all.
            fetch: gives vectors, for an index that does not hold them whole.
            exact: compare with everything that is allowed.
            effort: how far an approximate structure searches, in multiples of what is usual.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        allowed = len(self) if mask is None else int(mask.sum())
        k = min(k, allowed)
        if k == 0 or not len(queries):
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        whole = self._whole()
        given: Fetch = fetch if whole is None else whole.__getitem__
        if exact:
            return _scan(queries, k, np.arange(len(self)) if mask is None else np.flatnonzero(mask), given)
        if mask is None:
            return self._approximate(queries, k, None, effort, given)
        if isinstance(self.index, faiss.IndexFlat):
            return self._raw(queries, k, mask, 1.0)
        if allowed <= max(SCANNED, SCANNED_SHARE * len(self) if whole is not None else 0):
            return _scan(queries, k, np.flatnonzero(mask), given)
        try:
            return self._masked(queries, k, mask, given, effort)
        except RuntimeError:  # some structures cannot search under a mask: compare
            return _scan(queries, k, np.flatnonzero(mask), given)

    def _masked(self, queries: np.ndarray, k: int, mask: np.ndarray, fetch: Fetch, effort: float) -> Found:
        """Search under a mask that allows many: the farther, the less of a query's own surroundings it allows."""
        near = self._raw(queries, min(NEIGHBOURS, len(self)), None, 0.5)[1]
        share = (mask[near] & (near >= 0)).mean(axis=1)  # [Q]
        easy = share >= 1 / WIDEN
        scores, found = np.empty((len(queries), k), np.float32), np.full((len(queries), k), -1)
        if easy.any():
            scores[easy], found[easy] = self._approximate(
                queries[easy], k, mask, effort * max(1.0, 0.5 / share[easy].min()), fetch
            )
        if len(rest := np.flatnonzero((found < 0).any(axis=1))):
            scores[rest], found[rest] = _scan(queries[rest], k, np.flatnonzero(mask), fetch)
        return scores, found

    def _approximate(self, queries: np.ndarray, k: int, mask: np.ndarray | None, effort: float, fetch: Fetch) -> Found:
        if self._whole() is not None:
            return self._raw(queries, k, mask, effort)
        wanted = min(len(self), max(RESCORED * k, RESCORED_FROM))
        found = self._raw(queries, wanted, mask, effort)[1]
        block = max(1, BLOCK // wanted)
        parts = [
            _rescore(queries[i : i + block], found[i : i + block], k, fetch) for i in range(0, len(queries), block)
        ]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([found for _, found in parts])

    def _raw(self, queries: np.ndarray, k: int, mask: np.ndarray | None, effort: float) -> Found:
        bits = None if mask is None else np.packbits(mask, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        return self.index.search(queries, k, params=_parameters(self.index, selector, k, effort))

    def _whole(self) -> np.ndarray | None:
        """[len(self), H], a view of the vectors where the index keeps them as they are."""
        graph = _as(self.index, faiss.IndexHNSW)
        flat = faiss.downcast_index(graph.storage) if graph is not None else self.index
        if not isinstance(flat, faiss.IndexFlat):
            return None
        return np.asarray(faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)).reshape(flat.ntotal, flat.d)


def _short(error: RuntimeError) -> str:
    return str(error).split("Error: ")[-1].strip()


def _as(index: faiss.Index, kind: type) -> Any:
    found = faiss.downcast_index(index)
    return found if isinstance(found, kind) else None


def _probe(index: faiss.Index, factory: str) -> None:
    """Add a vector, find it, forget it. Raises BuildError where the index cannot, as one that numbers by itself."""
    vector = np.eye(1, index.d, dtype=np.float32)
    try:
        index.add(vector)
        index.search(vector, 1)
        index.reset()
    except RuntimeError as error:
        message = f"a collection cannot live in '{factory}' ({_short(error)}): use index.factory=Flat"
        raise BuildError(message) from error


def _parameters(index: faiss.Index, selector: faiss.IDSelector | None, wanted: int, effort: float) -> Any:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, selector, wanted, effort)
        return parameters.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexHNSW):
        return parameters.SearchParametersHNSW(sel=selector, efSearch=int(effort * max(EF_SEARCH, 2 * wanted)))
    if isinstance(index, faiss.IndexIVF):
        probes = min(index.nlist, int(np.ceil(effort * max(NPROBE, NPROBE_SHARE * index.nlist))))
        kind = (
            parameters.IVFPQSearchParameters if isinstance(index, faiss.IndexIVFPQ) else parameters.SearchParametersIVF
        )
        return kind(sel=selector, nprobe=probes)
    return None if selector is None else parameters.SearchParameters(sel=selector)


def _scan(queries: np.ndarray, k: int, positions: np.ndarray, fetch: Fetch) -> Found:
    """Compare with every one of some positions, at least k, a block at a time."""
    scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(positions), BLOCK):
        block = positions[start : start + BLOCK]
        vectors = np.ascontiguousarray(fetch(block), np.float32)
        best, where = faiss.knn(queries, vectors, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        scores, found = _best(np.hstack([scores, best]), np.hstack([found, block[where]]), k)
    return scores, found


def _rescore(queries: np.ndarray, found: np.ndarray, k: int, fetch: Fetch) -> Found:
    """Order approximate candidates [Q, C] by their exact scores, keep k."""
    unique, where = np.unique(found, return_inverse=True)
    vectors = np.zeros((len(unique), queries.shape[1]), np.float32)
    known = unique >= 0  # −1: fewer were found
    if known.any():
        vectors[known] = fetch(unique[known])
    scores = np.einsum("qh,qch->qc", queries, vectors[where.reshape(found.shape)])
    scores[found < 0] = -np.inf
    return _best(scores, found, k)


def _best(scores: np.ndarray, found: np.ndarray, k: int) -> Found:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
