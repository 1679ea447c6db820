"""Part c of serve.py: `lrem embed` (ray_apps.indexing.embed.embed) and SentenceTransformer.encode.

Both have the same weights, titles and number of torch threads: ours one actor per thread, the peer one process with all
threads. Two ratios of titles per second:

    job        everything: ours on a running Ray, from the call to the written parquet, including the start of the
               actors; the peer's in a new interpreter, from its start to the written .npy encoding   ours from the
               start of the first batch to the end of the last by Ray Data's statistics, including the Arrow tables;
               the peer's `encode` alone, after one batch of warm-up

The peer runs with several batch sizes first, and the fastest counts. Ray idles during the peer's turn.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from paired_runner import answer, ask
from serve_common import side, spread, within

BATCHES = (32, 64, 128, 256)  # 32 is the library's default
LIMIT_S = 900  # to embed the catalogue once
SETTLE_S = 10  # before each turn


def compare(config: Any, titles: list[str], pairs: int, threads: int) -> dict[str, Any]:
    """Embed the catalogue on both sides, `pairs` times after one warm-up round; the peer is tuned first."""
    from ray_apps.cluster.session import cluster

    with tempfile.TemporaryDirectory(prefix="bench-") as name, cluster(config):
        folder, model = Path(name), config.path("model")
        (folder / "titles.txt").write_text("\n".join(titles))
        told = config.model_copy(update={"paths": config.paths.model_copy(update={"items": catalogue(folder, titles)})})
        tuning = {size: peer(model, folder, size, threads)["encoding"] for size in BATCHES}
        batch = min(tuning, key=lambda size: tuning[size])
        sides = {"ours": lambda: ours(told, folder / "vectors"), "peer": lambda: peer(model, folder, batch, threads)}
        taken: list[dict[str, dict[str, float]]] = []
        for i in range(pairs + 1):
            taken.append({})
            for which in list(sides) if i % 2 else list(sides)[::-1]:
                time.sleep(SETTLE_S)  # Ray replaces the workers of finished actors
                taken[-1][which] = sides[which]()
            print("embed", taken[-1], flush=True)
        found = {"actors": config.embed.actors, "torch threads of an actor": threads_of_an_actor()}
    return found | {"threads of the peer": threads, "peer's batch": batch} | summary(taken[1:], titles)


def summary(taken: list[dict[str, dict[str, float]]], titles: list[str]) -> dict[str, Any]:
    """Return ratios and rates, from the seconds of the pairs."""
    lengths = sorted(len(title.split()) for title in titles)
    found: dict[str, Any] = {
        "titles": len(titles),
        "words of a title": {"median": lengths[len(titles) // 2], "longest": lengths[-1]},
    }
    for what in ("job", "encoding"):
        middle = {which: statistics.median(pair[which][what] for pair in taken) for which in ("ours", "peer")}
        found[f"titles/s, {what}"] = {which: round(len(titles) / seconds) for which, seconds in middle.items()}
        found[what] = spread([pair["peer"][what] / pair["ours"][what] for pair in taken])
    return found | {"pairs": taken}


def catalogue(folder: Path, titles: list[str]) -> Path:
    """Write the titles as a catalogue."""
    import pyarrow as pa

    from lrem.data.files import write_parquet

    table = pa.table({"item_id": [f"p{i}" for i in range(len(titles))], "title": titles})
    return write_parquet(table, folder / "items.parquet")


class Spans:
    """Records the encoding time of each Ray Data execution; Ray Data creates one instance per execution."""

    recorded: ClassVar[list[dict[str, float]]] = []

    def after_execution_succeeds(self, executor: Any) -> None:
        """Record the span of the last operator, and the sum over its batches."""
        encoding = executor.get_stats().to_summary().operators_stats[-1]
        span = encoding.latest_end_time - encoding.earliest_start_time
        self.recorded.append({"encoding": span, "busy": encoding.wall_time.sum})

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None  # its other events


def ours(config: Any, out: Path) -> dict[str, float]:
    """Return the seconds of the whole job, of the encoding in it, and the sum over its batches."""
    from ray.data import DataContext

    from ray_apps.indexing.embed import embed

    callbacks = DataContext.get_current().custom_execution_callback_classes
    if Spans not in callbacks:
        callbacks.append(Spans)
    with within(LIMIT_S, "the embedding of a catalogue"):
        started = time.perf_counter()
        embed(config, config.path("model"), out)
        job = time.perf_counter() - started
    return {name: round(value, 3) for name, value in ({"job": job} | Spans.recorded[-1]).items()}


def threads_of_an_actor() -> int:
    """Return the torch threads that Ray gives an actor with one CPU."""
    import ray

    def count() -> int:
        import torch

        return torch.get_num_threads()

    return int(ray.get(ray.remote(num_cpus=1)(count).remote(), timeout=120))


def peer(model: Path, folder: Path, batch: int, threads: int) -> dict[str, float]:
    """Return the seconds of the peer's whole process, and of the encoding in it."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, __file__, "--model", str(model), "--folder", str(folder), "--batch", str(batch)]
    started = time.perf_counter()
    with side(command, environment, folder / "peer.log") as process:
        encoding_s = ask(process, "step")["value"]
        return {"job": round(time.perf_counter() - started, 3), "encoding": round(encoding_s, 3)}


def run_peer(model: str, folder: Path, batch: int) -> None:
    """Load, encode, write, as the library's documentation shows it."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    titles = (folder / "titles.txt").read_text().split("\n")
    encoder = SentenceTransformer(model)
    encoder.encode(titles[:batch], batch_size=batch)
    started = time.perf_counter()
    vectors = encoder.encode(titles, batch_size=batch, show_progress_bar=False)
    seconds = time.perf_counter() - started
    np.save(folder / "peer.npy", vectors)
    answer(seconds)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="Run the peer; serve.py starts it.")
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--folder", type=Path, required=True)
    arguments.add_argument("--batch", type=int, required=True)
    given = arguments.parse_args()
    run_peer(given.model, given.folder, given.batch)
