"""Measure what `lrem plan` assumes of each index structure: memory, latency, recall.

Each structure is built in one fresh process, and opened and searched with one thread, as in a shard, in another.
Memory is RssAnon of /proc/self/status: it leaves out mapped files, as SQLite's, which belong to the page cache.

    python benchmarks/capacity.py --out benchmarks/results/capacity.json
"""

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import ray.serve  # noqa: F401 - a shard's process holds it, too
from scipy.optimize import nnls
from search import vectors

from lrem.capacity.model import STRUCTURES, factory, work
from lrem.data.files import write_json
from lrem.index import Collection
from lrem.index.ann import training_size
from lrem.index.building import BATCH
from lrem.index.bulk_load import ItemBatch, build_collection
from lrem.index.recall import TIE

K, QUERIES, ROUNDS = 10, 200, 3  # the fastest round counts: other processes only ever slow one down
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10000x64,100000x64,1000000x64,20000x256", help="items x dimensions")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/capacity.json"))
    arguments = parser.parse_args()
    setting = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "command": " ".join(["python", *sys.argv])}
    results = []
    for size in arguments.sizes.split(","):
        count, dim = map(int, size.split("x"))
        with tempfile.TemporaryDirectory(prefix="capacity-") as folder:
            for family in STRUCTURES:
                what = factory(family, count, dim)
                if count >= training_size(dim, what):
                    place = Path(folder, family)
                    built = isolated(build, place, count, dim, what, threads=os.cpu_count())
                    row = {"family": family, "items": count, "dim": dim, "build": built}
                    results.append(row | {"open": isolated(search, place, what)})
                    print(json.dumps(results[-1]), flush=True)
    write_json({"setting": setting, "results": results}, arguments.out)
    print(*map(fitted, STRUCTURES, [results] * len(STRUCTURES)), sep="\n")


def isolated(function: Callable[..., Row], *arguments: Any, threads: int | None = 1) -> Row:
    """Return the function's result from a fresh process."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result(timeout=1200)


def build(folder: Path, count: int, dim: int, what: str) -> Row:
    """Fill a collection with clustered vectors, and build its structure."""
    started, starts = time.monotonic(), range(0, count, BATCH)
    batches = (batch(range(start, min(count, start + BATCH)), dim) for start in starts)
    build_collection(folder, batches, "capacity", dim, what)
    return {"s": round(time.monotonic() - started, 1)}


def batch(rows: range, dim: int) -> ItemBatch:
    title = "item {:010d} with a title of some words, as catalogues have"
    payloads: list[Row] = [{"title": title.format(row), "brand": f"brand {row % 500:03d}"} for row in rows]
    payloads = [p | {"price": float(row % 9973), "stock": row % 100} for p, row in zip(payloads, rows, strict=True)]
    return ItemBatch([f"p{row:09d}" for row in rows], payloads, vectors(len(rows), dim, 1 + rows[0]))


def search(folder: Path, what: str) -> Row:
    """Open the saved structure as a shard does, and search it; Flat comes first, and gives the exact scores."""
    exact, process = folder.with_name("exact.npy"), anonymous_memory()
    collection = Collection(folder, factory=what)
    queries = vectors(QUERIES, collection.dimension, 10**9)
    scores = np.array([[hit.score for hit in collection.search(query[None], K)[0]] for query in queries])
    memory = anonymous_memory() - process
    if what == "Flat":
        np.save(exact, scores)
    recall = float((scores >= np.load(exact)[:, -1:] - TIE).mean())
    times = np.empty((ROUNDS, QUERIES))
    for i in np.ndindex(times.shape):
        started = time.perf_counter()
        collection.search(queries[i[1]][None], K)
        times[i] = 1000 * (time.perf_counter() - started)
    ms = round(float(np.median(times, axis=1).min()), 4)
    return {"process": process, "memory": memory, "ms": ms, "recall": round(recall, 5)}


def anonymous_memory() -> int:
    """Return the bytes that belong to this process alone."""
    [kib] = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kib)


def fitted(family: str, results: list[Row]) -> str:
    """Return the structure's line in lrem.capacity.model: milliseconds are fitted by relative least squares."""
    rows = sorted((row for row in results if row["family"] == family), key=lambda row: row["items"])
    ms = np.array([row["open"]["ms"] for row in rows])
    works = [work(family, row["items"], row["dim"]) / 1e6 for row in rows]
    fixed, ns = nnls(np.stack([np.ones(len(rows)), works], 1) / ms[:, None], np.ones(len(rows)))[0]
    return f'"{family}": SearchCost({fixed:.4f}, {ns:.4f}, {rows[-1]["open"]["recall"]}),'


if __name__ == "__main__":
    main()
