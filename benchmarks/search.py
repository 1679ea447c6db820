"""Compare the live index with the Faiss index inside it, and with hnswlib: the cost of ids, payloads and filters.

The collection and Faiss search the same structure; hnswlib builds its own graph with the same M and efConstruction.
The peers start with our efSearch, and get a higher one if their recall is below ours. With a filter, Faiss gets a ready
bitmap, and hnswlib a Python function that it calls for every vector it visits, which is slow; the collection parses the
filter, searches as far as recall requires, and reads ids and payloads from SQLite. Each side has one thread; the sides
alternate, in reverse order from pair to pair.
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
GROUPS = 1000  # clusters of similar items
EFFORTS = [EF_SEARCH * factor for factor in (1, 2, 4, 8, 16)]
EQUAL = 0.001  # recalls that differ by less count as equal
FILTERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "10 %": {"tenth": 3},
    "50 %": {"price": {"$lt": 50.0}},
}
parameters_of: Any = faiss  # the type stubs lack the fields of search parameters
Search = Callable[[np.ndarray], np.ndarray]  # queries [Q, H] → positions [Q, K]
Peer = Callable[[int, np.ndarray | None], Search]  # efSearch, mask [N] or None → search function


def vectors(count: int, dimension: int, seed: int) -> np.ndarray:
    """Return [count, dimension] unit vectors in clusters, which are the same for every seed."""
    centres = np.random.default_rng(0).normal(size=(GROUPS, dimension)).astype(np.float32)
    random = np.random.default_rng(seed)
    points = centres[random.integers(GROUPS, size=count)] + random.normal(size=(count, dimension)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def make_payload(row: int, random: np.random.Generator) -> dict[str, Any]:
    return {"title": f"item number {row}", "tenth": row % 10, "price": float(random.uniform(0, 100))}


def fill(collection: Collection, items: np.ndarray) -> np.ndarray:
    """Upsert all items and return their prices, [N]."""
    random = np.random.default_rng(1)
    payloads = [make_payload(row, random) for row in range(len(items))]
    for rows in np.array_split(np.arange(len(items)), max(1, len(items) // 5000)):
        collection.upsert([f"p{row}" for row in rows], [payloads[row] for row in rows], items[rows])
    collection.wait(3600)
    return np.array([payload["price"] for payload in payloads])


def masks(prices: np.ndarray) -> dict[str, np.ndarray]:
    """Return the items that each filter allows, [N] bool."""
    return {"none": np.full(len(prices), True), "10 %": np.arange(len(prices)) % 10 == 3, "50 %": prices < 50}


def raw_faiss(index: faiss.Index) -> Peer:
    """Search Faiss as its documentation shows."""

    def peer(effort: int, mask: np.ndarray | None) -> Search:
        if mask is None:
            parameters = parameters_of.SearchParametersHNSW(efSearch=effort)
        else:
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
            parameters = parameters_of.SearchParametersHNSW(efSearch=effort, sel=selector)
            parameters.kept = bits, selector  # Faiss keeps pointers to them
        return lambda queries: index.search(queries, K, params=parameters)[1]

    return peer


def raw_hnswlib(items: np.ndarray) -> Peer:
    """Search hnswlib as its documentation shows."""
    index = hnswlib.Index(space="ip", dim=items.shape[1])
    index.init_index(max_elements=len(items), M=M, ef_construction=EF_CONSTRUCTION)
    index.add_items(items, num_threads=1)

    def peer(effort: int, mask: np.ndarray | None) -> Search:
        allows = None if mask is None else mask.tolist().__getitem__

        def search(queries: np.ndarray) -> np.ndarray:
            index.set_ef(effort)  # a setting of the index, shared by all searches
            return index.knn_query(queries, K, num_threads=1, filter=allows)[0]

        return search

    return peer


def seconds(search: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> np.ndarray:
    """Return the seconds of each call."""
    taken = []
    for start in range(0, len(queries), batch):
        started = time.perf_counter()
        search(queries[start : start + batch])
        taken.append(time.perf_counter() - started)
    return np.array(taken)


def pairs(sides: dict[str, Callable[..., Any]], queries: np.ndarray, batch: int, count: int) -> dict[str, Any]:
    """Return medians of every side over `count` pairs, and the ratio of each peer's seconds to ours with its range.

    The first side is ours. p95 is that of a call, which answers `batch` queries.
    """
    times: list[dict[str, np.ndarray]] = []
    for i in range(count + 1):
        order = list(sides) if i % 2 else list(sides)[::-1]
        times.append({name: seconds(sides[name], queries, batch) for name in order})
    del times[0]  # warm-up
    ours, *peers = sides
    ratios = {name: sorted(float(pair[name].sum() / pair[ours].sum()) for pair in times) for name in peers}
    qps = [{name: round(len(queries) / float(pair[name].sum()), 1) for name in sides} for pair in times]
    p95 = [{name: round(1000 * float(np.quantile(pair[name], 0.95)), 3) for name in sides} for pair in times]
    return {
        "queries/s": {name: round(statistics.median(pair[name] for pair in qps)) for name in sides},
        "p95 ms": {name: round(statistics.median(pair[name] for pair in p95), 3) for name in sides},
        "ratio": {name: round(statistics.median(values), 3) for name, values in ratios.items()},
        "range": {name: [round(values[0], 3), round(values[-1], 3)] for name, values in ratios.items()},
        "pairs": [{"queries/s": rates, "p95 ms": ms} for rates, ms in zip(qps, p95, strict=True)],
    }


def recall(results: list[set[int]], items: np.ndarray, queries: np.ndarray, allowed: np.ndarray) -> float:
    positions = np.flatnonzero(allowed)
    best = positions[faiss.knn(queries, items[positions], K, metric=faiss.METRIC_INNER_PRODUCT)[1]]
    shares = [len(set(expected) & result) / K for expected, result in zip(best.tolist(), results, strict=True)]
    return round(float(np.mean(shares)), 4)


def tune(
    peer: Peer, mask: np.ndarray | None, target: float, recall_of: Callable[[Search], float]
) -> tuple[Search, int, float]:
    """Return (search, efSearch, recall) of a peer with the lowest efSearch that reaches the target, or the highest."""
    for effort in EFFORTS:
        search = peer(effort, mask)
        if (reached := recall_of(search)) >= target - EQUAL:
            break
    return search, effort, reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=256)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search.json"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("faiss").setLevel(logging.WARNING)
    report = compare(arguments.count, arguments.dimension, arguments.queries, arguments.pairs)
    write_json(report, arguments.out)
    print(json.dumps(report, indent=2))


def compare(count: int, dimension: int, query_count: int, pair_count: int) -> dict[str, Any]:
    """Run the whole comparison and return its report."""
    faiss.omp_set_num_threads(1)
    items, queries = vectors(count, dimension, 1), vectors(query_count, dimension, 2)
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
                "queries": query_count,
                "pairs": pair_count,
                "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, one thread",
                "versions": {name: metadata.version(name) for name in ("faiss-cpu", "hnswlib", "numpy")},
                "graph": {"M": M, "efConstruction": EF_CONSTRUCTION, "efSearch of ours": EF_SEARCH},
                "collection": collection.stats(),
                "filled in s": round(filled, 1),
                "results": measure(collection, peers, items, queries, allowed, pair_count),
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
    """Return one row per filter and batch size."""
    results = []
    for name, where in FILTERS.items():

        def ours(queries: np.ndarray, where: dict[str, Any] | None = where) -> Any:
            return collection.search(queries, K, where)

        def recall_of(search: Search, mask: np.ndarray = allowed[name]) -> float:
            return recall([set(row) for row in search(queries).tolist()], items, queries, mask)

        for batch in (1, 32):  # with a filter, our effort depends on the batch
            parts = [ours(queries[start : start + batch]) for start in range(0, len(queries), batch)]
            ids = [{int(hit.item_id[1:]) for hit in hits} for part in parts for hits in part]
            recalls = {"ours": recall(ids, items, queries, allowed[name])}
            sides: dict[str, Any] = {"ours": ours}
            efforts = {}
            for peer, make in peers.items():
                mask = None if where is None else allowed[name]
                sides[peer], efforts[peer], recalls[peer] = tune(make, mask, recalls["ours"], recall_of)
            setting = {"filter": name, "batch": batch, "recall@10": recalls, "efSearch": efforts}
            row = setting | pairs(sides, queries, batch, count)
            print({key: value for key, value in row.items() if key != "pairs"}, flush=True)
            results.append(row)
    return results


if __name__ == "__main__":
    main()
