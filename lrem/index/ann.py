"""A Faiss index over positions 0, 1, 2, …: which structure for how many vectors, and how far it searches.

Ids, payloads and deletions belong to the caller, who passes a mask of the positions that may be returned.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from lrem.errors import BuildError

EXACT_UP_TO = 50_000  # vectors, which one thread compares in milliseconds
COMPRESS_FROM = 2_000_000  # vectors: of 256 dimensions, they and their graph take 2.5 GB
EF_CONSTRUCTION = 128
EF_SEARCH = 128
NPROBE, NPROBE_SHARE = 8, 1 / 32  # lists that are searched: this number, or this share if that is more
RESCORE_FACTOR, MIN_RESCORED = 10, 100  # candidates per hit, and at least, if the index holds codes only
MAX_SCANNED = 5_000  # allowed vectors up to which all are compared, whatever their share
MAX_SCANNED_SHARE = 0.15  # or up to this share: a graph search would mostly visit masked vectors
NEIGHBOURS = 64  # of a query, to estimate which share of its neighbourhood a mask allows
MAX_WIDENING = (
    16  # times as far as for NEIGHBOURS a masked search goes at most; beyond, all allowed vectors are compared
)
BLOCK = 65_536  # vectors compared at once
SAMPLE = 200_000  # vectors that a structure is trained on, or what it needs if that is more

untyped_faiss: Any = faiss  # the type stubs lack the fields of search parameters

Fetch = Callable[[np.ndarray], np.ndarray]  # positions [N] → their vectors [N, H]
Matches = tuple[np.ndarray, np.ndarray]  # scores [Q, k] float32, positions [Q, k] int64, −1 if there are fewer


def choose_factory(count: int, dimension: int, factory: str | None = None) -> tuple[str, str]:
    """Return the Faiss factory string for `count` vectors, and the reason. `factory` is used if it can be trained.

    >>> choose_factory(1000, 256)
    ('Flat', '1000 vectors: exact search is fast up to 50000')
    >>> choose_factory(300_000, 256)[0], choose_factory(5_000_000, 256)[0], choose_factory(10, 256, "IVF64,Flat")[0]
    ('HNSW32', 'IVF8192,PQ128', 'Flat')

    Raises:
        BuildError: Faiss refuses the factory.
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
    """Return how many vectors Faiss needs to train a factory's index: 39 per centroid of its k-means.

    Raises:
        BuildError: Faiss refuses the factory, or vectors cannot be added to its index.
    """
    index = _create(dimension, factory)
    if index.is_trained:
        _check_usable(index, factory)
        return 0
    inverted = faiss.try_extract_index_ivf(index)
    lists = [] if inverted is None else [inverted.nlist]
    bits = [int(n or 8) for n in re.findall(r"[PR]Q\d+(?:x(\d+))?", factory)]
    return 39 * max([*lists, *(2**n for n in bits), 32])


def _create(dimension: int, factory: str) -> faiss.Index:
    try:
        return faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise BuildError(f"Faiss does not know '{factory}' ({_reason(error)}): use index.factory=Flat") from error


class Ann:
    """A Faiss index by inner product.

    Args:
        index: empty and trained, or with vectors.
        factory: the string that it was created with.
    """

    def __init__(self, index: faiss.Index, factory: str) -> None:
        self.index, self.factory = index, factory

    @classmethod
    def build(cls, dimension: int, factory: str, sample: Callable[[int], np.ndarray]) -> "Ann":
        """Create and train an empty index.

        Args:
            sample: returns up to that many vectors [N, H] float32 to train on; called if training is necessary.

        Raises:
            BuildError: Faiss refuses the factory, or the sample is too small for it.
        """
        index = _create(dimension, factory)
        if (graph := _cast(index, faiss.IndexHNSW)) is not None:
            graph.hnsw.efConstruction = EF_CONSTRUCTION
        try:
            if not index.is_trained:
                vectors = sample(max(SAMPLE, training_size(dimension, factory)))
                index.train(np.ascontiguousarray(vectors, np.float32))
        except RuntimeError as error:
            raise BuildError(f"Faiss cannot build '{factory}' ({_reason(error)}): use index.factory=Flat") from error
        return cls(index, factory)

    @classmethod
    def read(cls, file: Path, factory: str) -> "Ann":
        """Read an index that `write` wrote."""
        return cls(faiss.read_index(str(file)), factory)

    def write(self, file: Path) -> None:
        """Write the index to one file."""
        faiss.write_index(self.index, str(file))

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def add(self, vectors: np.ndarray) -> None:
        """Add [N, H] float32 at the next positions. Raises BuildError if Faiss cannot."""
        try:
            self.index.add(np.ascontiguousarray(vectors, np.float32))
        except RuntimeError as error:
            message = f"Faiss cannot add to '{self.factory}' ({_reason(error)}): use index.factory=Flat"
            raise BuildError(message) from error

    def search(
        self,
        queries: np.ndarray,
        k: int,
        mask: np.ndarray | None,
        fetch: Fetch,
        exact: bool = False,
        effort: float = 1.0,
    ) -> Matches:
        """Return the k best of each query with exact scores, best first; k is limited to the allowed positions.

        Args:
            queries: [Q, H] float32, finite.
            mask: [len(self)] bool, the positions that may be returned; None: all.
            fetch: returns vectors, for an index that holds only codes.
            exact: compare with all allowed positions.
            effort: how far an approximate structure searches, as a multiple of the default.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        allowed = len(self) if mask is None else int(mask.sum())
        k = min(k, allowed)
        if k == 0 or not len(queries):
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        vectors = self._vectors()
        if vectors is not None:
            fetch = vectors.__getitem__
        if exact:
            return _scan(queries, k, np.arange(len(self)) if mask is None else np.flatnonzero(mask), fetch)
        if mask is None:
            return self._approximate(queries, k, None, effort, fetch)
        if isinstance(self.index, faiss.IndexFlat):
            return self._search_index(queries, k, mask, 1.0)
        if allowed <= max(MAX_SCANNED, MAX_SCANNED_SHARE * len(self) if vectors is not None else 0):
            return _scan(queries, k, np.flatnonzero(mask), fetch)
        try:
            return self._masked(queries, k, mask, fetch, effort)
        except RuntimeError:  # some structures cannot search with a mask
            return _scan(queries, k, np.flatnonzero(mask), fetch)

    def _masked(self, queries: np.ndarray, k: int, mask: np.ndarray, fetch: Fetch, effort: float) -> Matches:
        """Search with a mask that allows many positions: the fewer near the queries, the farther."""
        near = self._search_index(queries, min(NEIGHBOURS, len(self)), None, 0.5)[1]
        share = (mask[near] & (near >= 0)).mean(axis=1)  # [Q]
        reachable = share >= 1 / MAX_WIDENING
        scores, matches = np.empty((len(queries), k), np.float32), np.full((len(queries), k), -1)
        if reachable.any():
            scores[reachable], matches[reachable] = self._approximate(
                queries[reachable], k, mask, effort * max(1.0, 0.5 / share[reachable].min()), fetch
            )
        if len(rest := np.flatnonzero((matches < 0).any(axis=1))):
            scores[rest], matches[rest] = _scan(queries[rest], k, np.flatnonzero(mask), fetch)
        return scores, matches

    def _approximate(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None, effort: float, fetch: Fetch
    ) -> Matches:
        if self._vectors() is not None:
            return self._search_index(queries, k, mask, effort)
        count = min(len(self), max(RESCORE_FACTOR * k, MIN_RESCORED))
        candidates = self._search_index(queries, count, mask, effort)[1]
        block = max(1, BLOCK // count)
        parts = [
            _rescore(queries[i : i + block], candidates[i : i + block], k, fetch) for i in range(0, len(queries), block)
        ]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([matches for _, matches in parts])

    def _search_index(self, queries: np.ndarray, k: int, mask: np.ndarray | None, effort: float) -> Matches:
        bits = None if mask is None else np.packbits(mask, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        return self.index.search(queries, k, params=_parameters(self.index, selector, k, effort))

    def _vectors(self) -> np.ndarray | None:
        """Return a view of the vectors [len(self), H], or None if the index holds only codes."""
        graph = _cast(self.index, faiss.IndexHNSW)
        flat = faiss.downcast_index(graph.storage) if graph is not None else self.index
        if not isinstance(flat, faiss.IndexFlat):
            return None
        return np.asarray(faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)).reshape(flat.ntotal, flat.d)


def _reason(error: RuntimeError) -> str:
    return str(error).split("Error: ")[-1].strip()


def _cast(index: faiss.Index, kind: type) -> Any:
    derived = faiss.downcast_index(index)
    return derived if isinstance(derived, kind) else None


def _check_usable(index: faiss.Index, factory: str) -> None:
    """Add a vector, search it, and remove it. Raises BuildError if the index cannot, e.g. one with its own ids."""
    vector = np.eye(1, index.d, dtype=np.float32)
    try:
        index.add(vector)
        index.search(vector, 1)
        index.reset()
    except RuntimeError as error:
        message = f"a collection cannot use '{factory}' ({_reason(error)}): use index.factory=Flat"
        raise BuildError(message) from error


def _parameters(index: faiss.Index, selector: faiss.IDSelector | None, k: int, effort: float) -> Any:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, selector, k, effort)
        return untyped_faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexHNSW):
        return untyped_faiss.SearchParametersHNSW(sel=selector, efSearch=int(effort * max(EF_SEARCH, 2 * k)))
    if isinstance(index, faiss.IndexIVF):
        probes = min(index.nlist, int(np.ceil(effort * max(NPROBE, NPROBE_SHARE * index.nlist))))
        kind = (
            untyped_faiss.IVFPQSearchParameters
            if isinstance(index, faiss.IndexIVFPQ)
            else untyped_faiss.SearchParametersIVF
        )
        return kind(sel=selector, nprobe=probes)
    return None if selector is None else untyped_faiss.SearchParameters(sel=selector)


def _scan(queries: np.ndarray, k: int, positions: np.ndarray, fetch: Fetch) -> Matches:
    """Compare with all of `positions`, at least k, one block at a time."""
    scores, matches = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(positions), BLOCK):
        block = positions[start : start + BLOCK]
        vectors = np.ascontiguousarray(fetch(block), np.float32)
        best, where = faiss.knn(queries, vectors, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        scores, matches = _best(np.hstack([scores, best]), np.hstack([matches, block[where]]), k)
    return scores, matches


def _rescore(queries: np.ndarray, candidates: np.ndarray, k: int, fetch: Fetch) -> Matches:
    """Order candidates [Q, C] by their exact scores and keep k."""
    unique, where = np.unique(candidates, return_inverse=True)
    vectors = np.zeros((len(unique), queries.shape[1]), np.float32)
    valid = unique >= 0  # −1: there are fewer candidates
    if valid.any():
        vectors[valid] = fetch(unique[valid])
    scores = np.einsum("qh,qch->qc", queries, vectors[where.reshape(candidates.shape)])
    scores[candidates < 0] = -np.inf
    return _best(scores, candidates, k)


def _best(scores: np.ndarray, positions: np.ndarray, k: int) -> Matches:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
