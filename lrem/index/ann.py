"""Faiss behind positions 0, 1, 2, …: which structure for how many vectors, and how hard each has to search.

Knows Faiss; does not know ids, payloads or what was deleted: a caller hands in the mask of what may be found.
"""

import re
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

EXACT_UP_TO = 50_000  # vectors that one thread compares in milliseconds
COMPRESS_FROM = 2_000_000  # beyond, graph and whole vectors of 256 numbers take more than 3 GB
EF_CONSTRUCTION = 128
EF_SEARCH = 128
NPROBE_SHARE = 1 / 32  # of the lists
WIDEN = 16  # a filter makes a search look at most so many times as far
RESCORED, RESCORED_FROM = 10, 100  # candidates for each wanted one and at least, where scores are approximate
SCANNED = 5_000  # candidates that are compared exactly whatever their share
SCANNED_SHARE = 0.15  # and the share below which a graph, which has to walk through what is masked, is slower

Fetch = Callable[[np.ndarray], np.ndarray]  # positions [N] → their vectors [N, H]


class BuildError(ValueError):
    """Vectors or a factory string that no index can be built from; the message says what to change."""


def choose(count: int, dimension: int, factory: str | None = None) -> tuple[str, str]:
    """The Faiss factory for `count` vectors, and why. A given factory stands once there is enough to train it.

    >>> choose(1000, 256)
    ('Flat', '1000 vectors: exact search is fast up to 50000')
    >>> choose(300_000, 256)[0], choose(5_000_000, 256)[0], choose(10, 256, "IVF64,Flat")[0]
    ('HNSW32', 'IVF8192,PQ128', 'Flat')
    """
    if factory is not None:
        if count >= (needed := _training_need(factory)):
            return factory, "as configured"
        return "Flat", f"{count} vectors: '{factory}' is built from {needed} on"
    if count <= EXACT_UP_TO:
        return "Flat", f"{count} vectors: exact search is fast up to {EXACT_UP_TO}"
    if count < COMPRESS_FROM:
        return "HNSW32", f"{count} vectors: a graph is fast and fits in memory below {COMPRESS_FROM}"
    lists = 2 ** round(np.log2(4 * np.sqrt(count)))
    parts = max(part for part in range(1, dimension // 2 + 1) if dimension % part == 0)
    return f"IVF{lists},PQ{parts}", f"{count} vectors: compressed, then scored again from the stored vectors"


def _training_need(factory: str) -> int:
    lists = [int(n) for n in re.findall(r"IVF(\d+)", factory)]
    return 39 * max([*lists, 256 if "PQ" in factory else 0])  # what Faiss asks of k-means


class Ann:
    """An index by inner product.

    Args:
        index: empty and trained, or with vectors.
        factory: what it was made with.
    """

    def __init__(self, index: faiss.Index, factory: str) -> None:
        self.index, self.factory = index, factory

    @classmethod
    def build(cls, dimension: int, factory: str, sample: np.ndarray) -> "Ann":
        """Make and train an empty index. sample: [N, H] float32, what it will hold, or a part of it.

        Raises:
            BuildError: Faiss does not take the factory, or the sample is too small for it.
        """
        try:
            index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(np.ascontiguousarray(sample, np.float32))
        except RuntimeError as error:
            raise BuildError(
                f"Faiss cannot build '{factory}' on {len(sample)} vectors ({error}): use index.factory=Flat"
            ) from error
        graph = _as(index, faiss.IndexHNSW)
        if graph is not None:
            graph.hnsw.efConstruction = EF_CONSTRUCTION
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
        """Add [N, H] float32 at the next positions."""
        self.index.add(np.ascontiguousarray(vectors, np.float32))

    def search(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None, fetch: Fetch
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of each query with exact scores, best first.

        Args:
            queries: [Q, H] float32.
            mask: [len(self)] bool, which positions may be found; None: all.
            fetch: gives vectors, for an index that does not hold them whole.

        Returns:
            scores [Q, k'] float32 and positions [Q, k'] int64, k' ≤ k; −1 where fewer were found.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        allowed = len(self) if mask is None else int(mask.sum())
        k = min(k, allowed)
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        whole = self._whole()
        if mask is not None and allowed <= self._scanned(whole):
            positions = np.flatnonzero(mask)
            scores, found = _knn(queries, whole[positions] if whole is not None else fetch(positions), k)
            return scores, positions[found]
        bits = None if mask is None else np.packbits(mask, bitorder="little")
        selector = None if bits is None else faiss.IDSelectorBitmap(len(bits) * 8, faiss.swig_ptr(bits))
        wanted = k if whole is not None else min(allowed, max(RESCORED * k, RESCORED_FROM))
        effort = min(WIDEN, len(self) / allowed)
        scores, found = self.index.search(queries, wanted, params=_parameters(self.index, selector, wanted, effort))
        return (scores, found) if whole is not None else _rescore(queries, found, k, fetch)

    def _scanned(self, whole: np.ndarray | None) -> int:
        """How many candidates are compared exactly rather than by the index."""
        return max(SCANNED, int(SCANNED_SHARE * len(self)) if whole is not None else 0)

    def _whole(self) -> np.ndarray | None:
        """[len(self), H], a view of the vectors where the index keeps them as they are."""
        graph = _as(self.index, faiss.IndexHNSW)
        flat = faiss.downcast_index(graph.storage) if graph is not None else self.index
        if not isinstance(flat, faiss.IndexFlat):
            return None
        return np.asarray(faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)).reshape(flat.ntotal, flat.d)


def _as(index: faiss.Index, kind: type) -> faiss.Index | None:
    found = faiss.downcast_index(index)
    return found if isinstance(found, kind) else None


def _parameters(
    index: faiss.Index, selector: faiss.IDSelector | None, wanted: int, effort: float
) -> faiss.SearchParameters:
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, selector, wanted, effort)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(sel=selector, efSearch=int(effort * max(EF_SEARCH, 2 * wanted)))
    if isinstance(index, faiss.IndexIVF):
        probes = min(index.nlist, int(np.ceil(effort * max(8, NPROBE_SHARE * index.nlist))))
        kind = faiss.IVFPQSearchParameters if isinstance(index, faiss.IndexIVFPQ) else faiss.SearchParametersIVF
        return kind(sel=selector, nprobe=probes)
    return faiss.SearchParameters(sel=selector)


def _knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return faiss.knn(queries, np.ascontiguousarray(vectors, np.float32), k, metric=faiss.METRIC_INNER_PRODUCT)


def _rescore(queries: np.ndarray, found: np.ndarray, k: int, fetch: Fetch) -> tuple[np.ndarray, np.ndarray]:
    """Order approximate candidates [Q, C] by their exact scores, keep k."""
    unique, where = np.unique(found, return_inverse=True)
    vectors = np.zeros((len(unique), queries.shape[1]), np.float32)
    known = unique >= 0  # −1: fewer were found
    vectors[known] = fetch(unique[known])
    scores = np.einsum("qh,qch->qc", queries, vectors[where.reshape(found.shape)])
    scores[found < 0] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
