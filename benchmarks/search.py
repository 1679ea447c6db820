"""The live index beside the Faiss index inside it and beside hnswlib: what ids, payloads, tombstones and filters cost.

Ours and Faiss search the same structure; hnswlib has a graph of its own with the same M and efConstruction. Peers start
with our effort (efSearch) and are given more where their recall is below ours. Under a filter Faiss gets its bitmap
ready-made, and hnswlib the filter that it offers, a Python function called for every vector it meets, which is slow;
ours reads the filter and searches as far as recall asks, and adds ids and payloads out of SQLite, made into hits.
One thread each, the sides in turn, the order turned round from pair to pair. Knows no model and no HTTP.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import faiss
import hnswlib  # type: ignore[import-untyped]
import numpy as np

from lrem.data.files import write_json
from lrem.index.ann import EF_CONSTRUCTION, EF_SEARCH
from lrem.index.collection import Collection

K = 10
M = 32  # of HNSW32
GROUPS = 1000  # of vectors, as of items that are alike
EFFORTS = [EF_SEARCH * factor for factor in (1, 2, 4, 8, 16)]
EQUAL = 0.001  # recalls that differ by less count as equal
FILTERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "10 %": {"tenth": 3},
    "50 %": {"price": {"$lt": 50.0}},
}
kinds: Any = faiss  # its type stubs lack the fields of search parameters
Search = Callable[[np.ndarray], np.ndarray]  # queries [Q, H] → positions [Q, K]
Peer = Callable[[int, np.ndarray | None], Search]  # effort, mask [N] or None → how it searches


def vectors(count: int, dimension: int, seed: int) -> np.ndarray:
    """[count, dimension] unit vectors in groups, from the same groups for every seed."""
    centres = np.random.default_rng(0).normal(size=(GROUPS, dimension)).astype(np.float32)
    random = np.random.default_rng(seed)
    found = centres[random.integers(GROUPS, size=count)] + random.normal(size=(count, dimension)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def payload(row: int, random: np.random.Generator) -> dict[str, Any]:
    return {"title": f"item number {row}", "tenth": row % 10, "price": float(random.uniform(0, 100))}


def fill(collection: Collection, items: np.ndarray) -> np.ndarray:
    """Upsert every item; returns the prices, [N]."""
    random = np.random.default_rng(1)
    payloads = [payload(row, random) for row in range(len(items))]
    for rows in np.array_split(np.arange(len(items)), max(1, len(items) // 5000)):
        collection.upsert([f"p{row}" for row in rows], [payloads[row] for row in rows], items[rows])
    collection.wait(3600)
    return np.array([one["price"] for one in payloads])


def masks(prices: np.ndarray) -> dict[str, np.ndarray]:
    """What each filter allows, [N] bool."""
    return {"none": np.full(len(prices), True), "10 %": np.arange(len(prices)) % 10 == 3, "50 %": prices < 50}


def raw_faiss(index: faiss.Index) -> Peer:
    """Faiss as its documentation shows it."""

    def peer(effort: int, mask: np.ndarray | None) -> Search:
        if mask is None:
            parameters = kinds.SearchParametersHNSW(efSearch=effort)
        else:
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
            parameters = kinds.SearchParametersHNSW(efSearch=effort, sel=selector)
            parameters.kept = bits, selector  # Faiss keeps pointers to them
        return lambda queries: index.search(queries, K, params=parameters)[1]

    return peer


def raw_hnswlib(items: np.ndarray) -> Peer:
    """hnswlib as its documentation shows it."""
    index = hnswlib.Index(space="ip", dim=items.shape[1])
    index.init_index(max_elements=len(items), M=M, ef_construction=EF_CONSTRUCTION)
    index.add_items(items, num_threads=1)

    def peer(effort: int, mask: np.ndarray | None) -> Search:
        allows = None if mask is None else mask.tolist().__getitem__

        def search(queries: np.ndarray) -> np.ndarray:
            index.set_ef(effort)  # the index keeps it, for all who search
            return index.knn_query(queries, K, num_threads=1, filter=allows)[0]

        return search

    return peer


def seconds(search: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> np.ndarray:
    """What each call took."""
    taken = []
    for start in range(0, len(queries), batch):
        started = time.perf_counter()
        search(queries[start : start + batch])
        taken.append(time.perf_counter() - started)
    return np.array(taken)


def pairs(sides: dict[str, Callable[..., Any]], queries: np.ndarray, batch: int, count: int) -> dict[str, Any]:
    """Medians of every side over `count` pairs, and of each peer's seconds to ours (with the range). The first is ours.

    p95 is of a call, which answers `batch` queries.
    """
    taken: list[dict[str, np.ndarray]] = []
    for i in range(count + 1):
        order = list(sides) if i % 2 else list(sides)[::-1]
        taken.append({name: seconds(sides[name], queries, batch) for name in order})
    del taken[0]  # warms up
    ours, *peers = sides
    ratios = {name: sorted(float(one[name].sum() / one[ours].sum()) for one in taken) for name in peers}
    qps = [{name: round(len(queries) / float(one[name].sum()), 1) for name in sides} for one in taken]
    p95 = [{name: round(1000 * float(np.quantile(one[name], 0.95)), 3) for name in sides} for one in taken]
    return {
        "queries/s": {name: round(statistics.median(one[name] for one in qps)) for name in sides},
        "p95 ms": {name: round(statistics.median(one[name] for one in p95), 3) for name in sides},
        "ratio": {name: round(statistics.median(found), 3) for name, found in ratios.items()},
        "range": {name: [round(found[0], 3), round(found[-1], 3)] for name, found in ratios.items()},
        "pairs": [{"queries/s": one, "p95 ms": late} for one, late in zip(qps, p95, strict=True)],
    }


def recall(found: list[set[int]], items: np.ndarray, queries: np.ndarray, allowed: np.ndarray) -> float:
    positions = np.flatnonzero(allowed)
    best = positions[faiss.knn(queries, items[positions], K, metric=faiss.METRIC_INNER_PRODUCT)[1]]
    return round(float(np.mean([len(set(want) & got) / K for want, got in zip(best.tolist(), found, strict=True)])), 4)


def as_good(peer: Peer, mask: np.ndarray | None, wanted: float, recall_of: Callable[[Search], float]) -> Any:
    """(search, effort, recall) of a peer with the least effort that reaches the wanted recall, or with the most."""
    for effort in EFFORTS:
        search = peer(effort, mask)
        if (found := recall_of(search)) >= wanted - EQUAL:
            break
    return search, effort, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search.json"))
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    report = compare(given.count, given.dimension, given.queries, given.pairs)
    write_json(report, given.out)
    print(json.dumps(report, indent=2))


def compare(count: int, dimension: int, asked: int, pairs_of_each: int) -> dict[str, Any]:
    """The whole comparison on `count` vectors and `asked` queries, as JSON."""
    faiss.omp_set_num_threads(1)
    items, queries = vectors(count, dimension, 1), vectors(asked, dimension, 2)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        collection = Collection(Path(folder) / "items", "benchmark", dimension, f"HNSW{M}")
        try:
            allowed = masks(fill(collection, items))
            filled = time.monotonic() - started
            peers = {"faiss": raw_faiss(collection.segment.ann.index), "hnswlib": raw_hnswlib(items)}
            return {
                "items": count,
                "dimension": dimension,
                "queries": asked,
                "pairs": pairs_of_each,
                "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, one thread",
                "versions": {name: metadata.version(name) for name in ("faiss-cpu", "hnswlib", "numpy")},
                "graph": {"M": M, "efConstruction": EF_CONSTRUCTION, "efSearch of ours": EF_SEARCH},
                "collection": collection.stats(),
                "filled in s": round(filled, 1),
                "results": measure(collection, peers, items, queries, allowed, pairs_of_each),
            }
        finally:
            collection.close()


def measure(
    collection: Collection,
    peers: dict[str, Peer],
    items: np.ndarray,
    queries: np.ndarray,
    allowed: dict[str, np.ndarray],
    count: int,
) -> list[dict[str, Any]]:
    """A row for each filter and batch size."""
    results = []
    for name, where in FILTERS.items():

        def ours(some: np.ndarray, where: dict[str, Any] | None = where) -> Any:
            return collection.search(some, K, where)

        def recall_of(search: Search, mask: np.ndarray = allowed[name]) -> float:
            return recall([set(row) for row in search(queries).tolist()], items, queries, mask)

        for batch in (1, 32):  # our effort under a filter depends on the batch
            parts = [ours(queries[start : start + batch]) for start in range(0, len(queries), batch)]
            ids = [{int(hit.item_id[1:]) for hit in hits} for part in parts for hits in part]
            recalls = {"ours": recall(ids, items, queries, allowed[name])}
            sides: dict[str, Any] = {"ours": ours}
            efforts = {}
            for peer, make in peers.items():
                mask = None if where is None else allowed[name]
                sides[peer], efforts[peer], recalls[peer] = as_good(make, mask, recalls["ours"], recall_of)
            setting = {"filter": name, "batch": batch, "recall@10": recalls, "efSearch": efforts}
            found = setting | pairs(sides, queries, batch, count)
            print({key: value for key, value in found.items() if key != "pairs"}, flush=True)
            results.append(found)
    return results


if __name__ == "__main__":
    main()
