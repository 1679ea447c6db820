"""The processes of capacity.py: each measures one thing alone, in a fresh interpreter, and prints it as a line of JSON.

    fill       a collection of clustered made-up vectors, and what exact search finds for its queries
    build      the search structure made from the store: seconds, and memory at the peak
    open       the structure opened as a shard opens it: memory, files, milliseconds, recall
    small      a collection of a few items: what a process, a call and a hit cost
    cold       a page of the store that the page cache does not hold
    embedder   queries a second of one embedder on one core
    reasoner   tokens a second of one vLLM engine on all cores

Memory is RssAnon of /proc/self/status: what the process has for itself. Files that it maps, as SQLite's, are the page
cache's. Knows how to measure; does not know the model.
"""

import argparse
import ctypes
import importlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from search import vectors

from lrem.capacity.footprint import PAGE
from lrem.data.files import write_json
from lrem.index import Collection
from lrem.index.building import BATCH
from lrem.index.bulk_load import Batch, fill
from lrem.index.collection import ANN, ITEMS
from lrem.index.recall import TIE
from lrem.index.store import Store

K = 10
QUERIES = 200
ROUNDS = 3  # over the queries; the one with the fastest median counts, as neighbours only ever slow one down
CANDIDATES = 100
MODEL = "capacity"  # the collections' model
BRANDS = 500
Found = dict[str, Any]


def payload(row: int) -> dict[str, Any]:
    """Of an item: a title that is its own, and three fields that filters can ask."""
    title = f"item {row:010d} with a title of some words, as catalogues have"
    return {"title": title, "brand": f"brand {row % BRANDS:03d}", "price": float(row % 9973), "stock": row % 100}


def anon() -> int:
    """Bytes that the process has for itself."""
    [kib] = re.findall(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kib)


@contextmanager
def peak() -> Iterator[list[int]]:
    """The most that `anon` says during the block, looked at a hundred times a second, as the list's only entry."""
    most, over = [anon()], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            most[0] = max(most[0], anon())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        over.set()
        thread.join()


def make(folder: Path, count: int, dim: int) -> Found:
    """Fill the collection, one batch after the other, and keep the queries with their exact best scores."""
    queries = vectors(QUERIES, dim, 10**9)
    best = np.empty((QUERIES, 0), np.float32)

    def batches() -> Iterator[Batch]:
        nonlocal best
        for first in range(0, count, BATCH):
            rows = range(first, min(count, first + BATCH))
            made = vectors(len(rows), dim, 1 + first)
            best = -np.sort(-np.hstack([best, queries @ made.T]), axis=1)[:, :K]
            yield Batch([f"p{row:09d}" for row in rows], [payload(row) for row in rows], made)

    started = time.monotonic()
    fill(folder, batches(), MODEL, dim, "Flat")
    np.savez(folder / "truth.npz", queries=queries, best=best)
    return {"s": round(time.monotonic() - started, 1)}


def build(folder: Path, factory: str) -> Found:
    """Make the structure from the store, as a rebuild does."""
    shutil.rmtree(folder / ANN)
    before, started = anon(), time.monotonic()
    with peak() as most:
        collection = Collection(folder, MODEL, factory=factory)
    found = {"s": round(time.monotonic() - started, 1), "peak": most[0] - before, "after": anon() - before}
    collection.save()
    return found | {"factory": collection.segment.ann.factory}


def opened(folder: Path, factory: str) -> Found:
    """Open what `build` saved, and search it."""
    kept = np.load(folder / "truth.npz")
    queries, best = kept["queries"], kept["best"]
    before = anon()
    collection = Collection(folder, MODEL, factory=factory)
    hits = [collection.search(query[None], K)[0] for query in queries]  # warms up, too
    memory = anon() - before
    found = sum(hit.score >= line[-1] - TIE for line, row in zip(best, hits, strict=True) for hit in row)
    faiss.cvar.hnsw_stats.reset()
    ms = []
    for _ in range(ROUNDS):
        ms.append(np.median([timed(lambda query=query: collection.search(query[None], K)) for query in queries]))
    visits = faiss.cvar.hnsw_stats.ndis / (ROUNDS * len(queries))
    fetched = [timed(lambda rows=rows: collection.store.vectors(rows)) for rows in some_rows(collection.store)]
    return {
        "factory": collection.segment.ann.factory,
        "memory": memory,
        "store": (folder / ITEMS).stat().st_size,
        "saved": sum(file.stat().st_size for file in (folder / ANN).iterdir()),
        "ms": round(float(min(ms)), 4),
        "recall": round(found / (K * len(queries)), 5),
        "visits": round(visits, 1),
        "fetch us": round(1000 * float(np.median(fetched)) / CANDIDATES, 3),
    }


def timed(work: Any) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def some_rows(store: Store) -> list[list[int]]:
    """Rows as a search asks for its candidates', anywhere in the store."""
    random = np.random.default_rng(1)
    return [(1 + random.choice(store.last_row, CANDIDATES)).tolist() for _ in range(20)]


def small(folder: Path) -> Found:
    """A few items of few numbers, so that little is the vectors'. Then with what a replica of Serve imports."""
    before = anon()
    collection = Collection(folder, MODEL)
    query = np.load(folder / "truth.npz")["queries"][:1]
    us = {}
    for k in (1, 101):
        us[k] = 1000 * float(np.median([timed(lambda k=k: collection.search(query, k)) for _ in range(500)]))
    memory = anon() - before
    for name in ("ray.serve", "ray_apps.serving.index_shard"):
        importlib.import_module(name)
    return {"memory": memory, "process": anon(), "items": len(collection), "us": us}


def cold(folder: Path) -> Found:
    """Median µs of a page of the store anywhere on the disk, once the system has forgotten it."""
    with (folder / ITEMS).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        pages = np.random.default_rng(0).permutation(os.fstat(file.fileno()).st_size // PAGE)[:300]
        ms = [timed(lambda page=page: os.pread(file.fileno(), PAGE, int(page) * PAGE)) for page in pages]
    return {"us": round(1000 * float(np.median(ms)), 2)}


def model(folder: Path) -> list[str]:
    """A model of the demo's sizes with random weights, saved, and queries for it."""
    import torch
    from serve_common import query, words

    from lrem.config import ModelConfig
    from lrem.modeling.model import ReasoningEmbedder
    from lrem.modeling.tokenizer import train_tokenizer
    from lrem.world import make_world

    titles = make_world(0, 2000, 3000, 50).items["title"].to_pylist()
    if not folder.exists():
        tokenizer = train_tokenizer([f" {title}" for title in titles], ModelConfig().vocab_size)
        made = ReasoningEmbedder.from_config(ModelConfig(), tokenizer, 0)
        with torch.no_grad():  # random, tied weights repeat their last token: not `<think>`, or nothing is written
            made.lm.get_input_embeddings().weight[made.renderer.think] = 0
        made.save(folder)
    vocabulary = words(titles)
    return [query(vocabulary, number) for number in range(512)]


def embedder(folder: Path) -> Found:
    """Queries with a reasoning of the usual length, 32 at a time."""
    import torch

    from lrem.modeling.model import ReasoningEmbedder

    queries = model(folder)
    torch.set_num_threads(1)
    loaded = ReasoningEmbedder.load(folder).eval()
    thoughts = [" ".join(queries[(i + 1) % 512].split() * 4) for i in range(512)]
    parts = [slice(first, first + 32) for first in range(0, 512, 32)]
    ms = [timed(lambda part=part: loaded.encode_queries(queries[part], thoughts[part])) for part in parts]
    return {"queries/s": round(32_000 / float(np.median(ms[1:])), 1)}


def reasoner(folder: Path) -> Found:
    """Reasonings at their full budget, 64 queries at once, each asked once, so that no prefix is remembered."""
    from lrem.config import RolloutConfig
    from ray_apps.rollouts.engines import VllmEngine

    queries = model(folder)
    engine = VllmEngine(str(folder), RolloutConfig())
    budget = engine.renderer.template.budget
    rates = []
    for first in range(0, 512, 64):
        prompts = [engine.renderer.thinking_prompt(query) for query in queries[first : first + 64]]
        ms = timed(lambda prompts=prompts: engine.generate(prompts, 1, 0.0, budget, []))
        rates.append(1000 * 64 * budget / ms)
    return {"tokens/s": round(float(np.median(rates[1:])), 1), "cores": len(os.sched_getaffinity(0))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=["fill", "build", "open", "small", "cold", "embedder", "reasoner"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factory", default="Flat")
    parser.add_argument("--count", type=int, default=BATCH)
    parser.add_argument("--dim", type=int, default=64)
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: it ends with its parent
    if given.side == "fill":
        found = make(given.folder, given.count, given.dim)
    elif given.side in ("build", "open"):
        found = {"build": build, "open": opened}[given.side](given.folder, given.factory)
    else:
        sides = {"small": small, "cold": cold, "embedder": embedder, "reasoner": reasoner}
        found = sides[given.side](given.folder)
    write_json(found, given.out)


if __name__ == "__main__":
    main()
