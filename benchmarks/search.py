"""The live index beside the Faiss index inside it: what ids, payloads, tombstones and filters cost.

Both sides search the same structure. Without a filter they search it as hard, so recall is equal and the difference is
what ours adds: ids and payloads out of SQLite, made into hits. Under a filter the peer gets its bitmap ready-made and
keeps its effort; ours reads the filter and searches as far as recall asks. One thread each, the sides in turn, the
order changed from pair to pair.
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
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from lrem.files import write_json
from lrem.index.ann import EF_SEARCH
from lrem.index.collection import Collection

K = 10
GROUPS = 1000  # of vectors, as of items that are alike
FILTERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "10 %": {"tenth": 3},
    "50 %": {"price": {"$lt": 50.0}},
}


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


def raw(index: faiss.Index, mask: np.ndarray | None) -> Callable[[np.ndarray], Any]:
    """The peer: Faiss as its documentation shows it."""
    if mask is None:
        parameters = faiss.SearchParametersHNSW(efSearch=EF_SEARCH)
        return lambda queries: index.search(queries, K, params=parameters)
    bits = np.packbits(mask, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    parameters = faiss.SearchParametersHNSW(efSearch=EF_SEARCH, sel=selector)
    parameters.kept = bits, selector  # Faiss keeps pointers to them
    return lambda queries: index.search(queries, K, params=parameters)


def seconds(search: Callable[[np.ndarray], Any], queries: np.ndarray, batch: int) -> float:
    started = time.perf_counter()
    for start in range(0, len(queries), batch):
        search(queries[start : start + batch])
    return time.perf_counter() - started


def pairs(ours: Callable[..., Any], peer: Callable[..., Any], queries: np.ndarray, batch: int, count: int) -> Any:
    """Median queries per second of both sides, and the median and range of their ratio, over `count` pairs."""
    sides = {"ours": ours, "faiss": peer}
    taken: list[dict[str, float]] = []
    for i in range(count + 1):
        order = list(sides) if i % 2 else list(sides)[::-1]
        taken.append({name: seconds(sides[name], queries, batch) for name in order})
    ratios = sorted(one["faiss"] / one["ours"] for one in taken[1:])  # the first warms up
    qps = {name: round(len(queries) / statistics.median(one[name] for one in taken[1:])) for name in sides}
    return {
        "queries/s": qps,
        "ratio": round(statistics.median(ratios), 3),
        "range": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def recall(found: list[set[int]], items: np.ndarray, queries: np.ndarray, allowed: np.ndarray) -> float:
    positions = np.flatnonzero(allowed)
    best = positions[faiss.knn(queries, items[positions], K, metric=faiss.METRIC_INNER_PRODUCT)[1]]
    return round(float(np.mean([len(set(want) & got) / K for want, got in zip(best.tolist(), found, strict=True)])), 4)


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
    faiss.omp_set_num_threads(1)
    items = vectors(given.count, given.dimension, 1)
    queries = vectors(given.queries, given.dimension, 2)
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        collection = Collection(Path(folder) / "items", "benchmark", given.dimension, "HNSW32")
        allowed = masks(fill(collection, items))
        report = {
            "items": given.count,
            "dimension": given.dimension,
            "pairs": given.pairs,
            "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, one thread",
            "versions": {"faiss": faiss.__version__, "numpy": np.__version__},
            "collection": collection.stats(),
            "filled in s": round(time.monotonic() - started, 1),
            "results": measure(collection, items, queries, allowed, given.pairs),
        }
        collection.close()
    write_json(report, given.out)
    print(json.dumps(report, indent=2))


def measure(
    collection: Collection, items: np.ndarray, queries: np.ndarray, allowed: dict[str, np.ndarray], count: int
) -> list[dict[str, Any]]:
    """A row for each filter and batch size."""
    results = []
    for name, where in FILTERS.items():
        peer = raw(collection.segment.ann.index, None if where is None else allowed[name])

        def ours(some: np.ndarray, where: dict[str, Any] | None = where) -> Any:
            return collection.search(some, K, where)

        theirs = recall([set(row) for row in peer(queries)[1].tolist()], items, queries, allowed[name])
        for batch in (1, 32):  # our effort under a filter depends on the batch
            parts = [ours(queries[start : start + batch]) for start in range(0, len(queries), batch)]
            ids = [{int(hit.item_id[1:]) for hit in hits} for part in parts for hits in part]
            recalls = {"ours": recall(ids, items, queries, allowed[name]), "faiss": theirs}
            found = {"filter": name, "batch": batch, "recall@10": recalls} | pairs(ours, peer, queries, batch, count)
            print(found, flush=True)
            results.append(found)
    return results


if __name__ == "__main__":
    main()
