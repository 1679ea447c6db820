"""Curation without its teacher: rows/s of every step, memory over the rows, and what a second worker brings.

Makes a shop and its queries, with a file of reasonings in the place of a teacher, so that thinking costs nothing and
everything else is the real stage. Each run is a process of its own; one and two actors take turns, and the order is
turned round from pair to pair. Ray's own start and end are not counted; the start of actors is.

Steps, told apart by when their parts appeared: cut (reads all, finds near-duplicates), find, teach, judge, write.
Memory is that of the driver and all processes of its Ray, once a second: resident pages less shared ones, so without
the object store and mapped libraries. Of a step it is flat where the median over its last quarter of rows is at most
10 % above that of its second quarter, for the driver, the actors and the rest alike; in the first actors start.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from lrem.config import Config, load_config
from lrem.data.files import sha256, write_json, write_parquet
from lrem.data.schema import ITEMS, QRELS, QUERIES, REASONINGS

PACKAGES = ("ray", "pyarrow", "bm25s", "numpy", "scipy")
INPUTS = {"queries": QUERIES, "qrels": QRELS, "teacher": REASONINGS}
OUTPUTS = ("triplets.parquet", "rl_pairs.parquet", "test.parquet")
WORKED = {"find": "found", "teach": "taught", "judge": "decided"}  # step → folder of its parts
TOGETHER = "find, teach and judge"
STEPS = ("cut", *WORKED, "write")
SPEEDS = ("rows/s", "rows/s once started")
FLAT = 0.10  # growth that still counts as flat
SAMPLE_S = 1.0
LEAST_SAMPLES = 3  # of a quarter, to say anything about it
CHUNK = 50_000  # queries made at a time

# The shop: families of items share some words; a query asks for one family, by its words or, as most, by others.
VOCABULARY, FAMILY, SHARED, OWN = 20_000, 4, 3, 5  # words, items of a family, words of all its titles, at most of one
EASY, SILENT, WRONG = 0.3, 0.05, 0.05  # shares: served without thinking, without a reasoning, with one that misleads
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprtvz" for vowel in "aeiou"]


class Shop(NamedTuple):
    """Word numbers of the titles."""

    shared: np.ndarray  # [families, SHARED]
    own: np.ndarray  # [items, OWN], -1: no word


class Sample(NamedTuple):
    """Resident less shared memory, MB."""

    at: float  # seconds since the epoch
    driver: float
    actors: float  # those that do parts
    ray: float  # everything else of Ray


KINDS = (*Sample._fields[1:], "all")


class Run(NamedTuple):
    """What one run left."""

    steps: dict[str, tuple[float, float]]  # begin and end, seconds since the epoch
    parts: dict[str, np.ndarray]  # of a step of WORKED: when each part appeared, sorted
    samples: list[Sample]
    counters: dict[str, int]
    outputs: str  # checksum


def make_words() -> pa.Array:
    """VOCABULARY different words of three syllables, so that none is a stop word."""
    base = len(SYLLABLES)
    return pa.array(
        [SYLLABLES[i // base**2] + SYLLABLES[i // base % base] + SYLLABLES[i % base] for i in range(VOCABULARY)]
    )


def drawn(random: np.random.Generator, shape: tuple[int, ...], offset: float) -> np.ndarray:
    """Word numbers by Zipf and Mandelbrot's law, p ~ 1/(rank + offset): a large offset flattens the head."""
    weights = np.cumsum(1 / (np.arange(VOCABULARY) + offset))
    return np.searchsorted(weights, random.random(shape) * weights[-1], side="right")


def texts(words: pa.Array, numbers: np.ndarray) -> pa.Array:
    """[N] texts of word numbers, [N, W]; -1 leaves a place out."""
    columns = [words.take(pa.array(numbers[:, i], mask=numbers[:, i] < 0)) for i in range(numbers.shape[1])]
    return pc.binary_join_element_wise(*columns, " ", null_handling="skip")


def some(random: np.random.Generator, numbers: np.ndarray, least: int) -> np.ndarray:
    """The same with between `least` and all of each row's words, the rest -1."""
    kept = random.integers(least, numbers.shape[1] + 1, size=len(numbers))
    return np.where(np.arange(numbers.shape[1]) < kept[:, None], numbers, -1)


def make_shop(words: pa.Array, items: int, file: Path) -> Shop:
    """Write the catalogue."""
    random = np.random.default_rng(0)
    families = -(-items // FAMILY)
    shop = Shop(drawn(random, (families, SHARED), 100), some(random, drawn(random, (items, OWN), 2.7), 2))
    titles = texts(words, np.hstack([shop.shared[np.arange(items) // FAMILY], shop.own]))
    write_parquet(pa.table({"item_id": names("i", np.arange(items)), "title": titles}).cast(ITEMS), file)
    return shop


def names(letter: str, numbers: np.ndarray) -> pa.Array:
    return pc.binary_join_element_wise(letter, pa.array(numbers).cast(pa.string()), "")


def make_inputs(rows: int, items: int, folder: Path) -> None:
    """Write a shop, queries, judgements and reasonings, some at a time; the same for the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    words = make_words()
    shop = make_shop(words, items, folder / "items.parquet")
    writers = {name: pq.ParquetWriter(folder / f"{name}.parquet", schema) for name, schema in INPUTS.items()}
    for start in range(0, rows, CHUNK):
        made = make_chunk(words, shop, np.arange(start, min(start + CHUNK, rows)))
        for name, writer in writers.items():
            writer.write_table(made[name].cast(INPUTS[name]))
    for writer in writers.values():
        writer.close()


def make_chunk(words: pa.Array, shop: Shop, rows: np.ndarray) -> dict[str, pa.Table]:
    """The queries of these numbers, with one to three judged items each, and most with a reasoning."""
    random, count, items = np.random.default_rng([1, int(rows[0])]), len(rows), len(shop.own)
    first = random.integers(items, size=count)
    family, kind = first // FAMILY, random.random(count)
    shared, ids = shop.shared[family], names("q", rows)
    # a served query: two words of the family, one of the item, one of any; another: two to five that nobody planned
    known = np.column_stack([shared[:, :2], shop.own[first, 0], drawn(random, (count,), 2.7), np.full(count, -1)])
    asked = np.where((kind < EASY)[:, None], some(random, known, 3), some(random, drawn(random, (count, 5), 100), 2))
    judged = family[:, None] * FAMILY + (first[:, None] + np.arange(3)) % FAMILY  # [count, 3]
    there = (np.arange(3) < random.integers(1, 4, size=count)[:, None]) & (judged < items)
    grades = random.choice([3, 2, 1, 0], p=[0.4, 0.3, 0.2, 0.1], size=judged.shape)
    grades[:, 0] = np.maximum(grades[:, 0], 1)
    said = np.where(random.random(count) < WRONG, random.integers(len(shop.shared), size=count), family)
    phrases = [texts(words, shop.shared[said][:, places]) for places in ([0, 1], [2])]
    reasonings = pc.binary_join_element_wise(*phrases, texts(words, drawn(random, (count, 1), 2.7)), ", ")
    told = kind < 1 - SILENT
    return {
        "queries": pa.table({"query_id": ids, "query": texts(words, asked)}),
        "qrels": pa.table(
            {
                "query_id": ids.take(np.nonzero(there)[0]),
                "item_id": names("i", judged[there]),
                "grade": grades[there],
            }
        ),
        "teacher": pa.table({"query_id": ids, "reasoning": reasonings}).filter(told),
    }


def settings(inputs: Path, run_dir: Path, actors: int) -> Config:
    """The defaults of curation over the inputs, in a Ray of its own."""
    overrides: dict[str, Any] = {f"paths.{name}": inputs / f"{name}.parquet" for name in ("items", *INPUTS)}
    overrides |= {"run_dir": run_dir, "curate.actors": actors, "curate.teacher": "file", "curate.test_share": 0.02}
    overrides |= {"ray.address": "local", "ray.num_cpus": 4}
    return load_config(None, [f"{key}={value}" for key, value in overrides.items()])


def work(inputs: Path, run_dir: Path, actors: int) -> None:
    """What the measured process does."""
    from ray_apps.cluster.session import cluster
    from ray_apps.curation.curate import run  # here: only this process needs Ray

    config = settings(inputs, run_dir, actors)
    with cluster(config):
        begun = time.time()
        counters = run(config)
        write_json({"begun": begun, "ended": time.time(), "counters": counters}, run_dir / "told.json")


@contextmanager
def watched(process: subprocess.Popen[bytes]) -> Iterator[list[Sample]]:
    """Fill a list with the memory of a process and all below it, until the block ends."""
    samples: list[Sample] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_S):
            sums = {"driver": 0.0, "actors": 0.0, "ray": 0.0}
            try:
                tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for one in tree:
                try:
                    memory, name = one.memory_info(), " ".join(one.cmdline()[:1])
                except psutil.Error:  # it has just ended
                    continue
                kind = "driver" if one.pid == process.pid else "actors" if "MapWorker" in name else "ray"
                sums[kind] += (memory.rss - memory.shared) / 2**20
            samples.append(Sample(time.time(), **sums))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield samples
    finally:
        ended.set()
        watcher.join()


def one_run(inputs: Path, run_dir: Path, actors: int) -> Run:
    """Run curation once in a fresh process and read what it left; its folder is deleted.

    Raises:
        SystemExit: it failed.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, __file__, "--folder", inputs.parent, "--work", run_dir, "--actors", actors]
    process = subprocess.Popen([str(word) for word in command], env=os.environ | {"PYTHONPATH": os.getcwd()})
    with watched(process) as samples:
        failed = process.wait()
    if failed:
        raise SystemExit(f"curation with {actors} actors ended with exit code {failed}: its reason stands above")
    told = json.loads((run_dir / "told.json").read_text())
    curated = run_dir / "curated"
    (folder,) = (found.parent for found in curated.glob("work/*/input"))
    parts = {
        step: np.sort([part.stat().st_mtime for part in (folder / name).glob("[0-9]*.parquet")])
        for step, name in WORKED.items()
    }
    ends = [told["begun"], (folder / "input" / "cut.json").stat().st_mtime]
    ends += [float(times[-1]) for times in parts.values()] + [told["ended"]]
    steps = {step: (ends[i], ends[i + 1]) for i, step in enumerate(STEPS)}
    outputs = hashlib.sha256("".join(sha256(curated / name) for name in OUTPUTS).encode()).hexdigest()
    shutil.rmtree(run_dir)
    return Run(steps, parts, samples, told["counters"], outputs)


def speeds(run: Run, rows: int) -> dict[str, float]:
    """Rows/s of each step and overall."""
    taken = {step: end - begin for step, (begin, end) in run.steps.items()}
    taken |= {TOGETHER: sum(taken[step] for step in WORKED), "overall": sum(taken.values())}
    return {step: round(rows / seconds, 1) for step, seconds in taken.items()}


def running(run: Run, rows: int, actors: int) -> dict[str, float]:
    """Rows/s of the steps of parts from when every actor has done one: without their start."""
    counts = {step: (len(at) - actors) / len(at) * rows for step, at in run.parts.items()}
    taken = {step: float(at[-1] - at[actors - 1]) for step, at in run.parts.items()}
    speed = {step: round(counts[step] / taken[step], 1) for step in taken}
    return speed | {TOGETHER: round(sum(counts.values()) / sum(taken.values()) / len(counts), 1)}


def memory(run: Run, step: str, rows: int) -> dict[str, Any]:
    """MB over the rows of a step: of cut and write the share of rows that is done is taken to be that of the time."""
    begin, end = run.steps[step]
    taken = [sample for sample in run.samples if begin <= sample.at <= end]
    if not taken:
        return {"samples": 0}
    at = np.array([sample.at for sample in taken])
    parts = run.parts.get(step)
    done = (at - begin) / (end - begin) if parts is None else np.searchsorted(parts, at, side="right") / len(parts)
    sides = np.array([[*sample[1:], sum(sample[1:])] for sample in taken])  # [S, KINDS]
    whole = sides[:, -1]
    marks = (0.25, 0.5, 0.75, 1.0)
    found = {
        "samples": len(taken),
        "peak MB": round(float(whole.max()), 1),
        "MB at": {f"{mark:.0%}": round(float(whole[np.abs(done - mark).argmin()]), 1) for mark in marks},
    }
    second, last = sides[(done > 0.25) & (done <= 0.5)], sides[done > 0.75]
    if step != "cut" and min(len(second), len(last)) >= LEAST_SAMPLES:
        settled = done > 0.25
        slopes = np.polyfit(done[settled] * rows / 1e5, sides[settled], 1)[0]
        before, after = np.median(second, axis=0), np.median(last, axis=0)
        ratios = {kind: after[i] / before[i] for i, kind in enumerate(KINDS) if before[i] > 0}
        found |= {
            "median MB of quarter 4": {kind: round(float(after[i]), 1) for i, kind in enumerate(KINDS)},
            "MB per 100,000 rows": {kind: round(float(slopes[i]), 2) for i, kind in enumerate(KINDS)},
            "quarter 4 to quarter 2": {kind: round(float(ratio), 3) for kind, ratio in ratios.items()},
            "flat": all(ratio <= 1 + FLAT for ratio in ratios.values()),
        }
    return found


def told(run: Run, rows: int, actors: int) -> dict[str, Any]:
    """One run, as JSON."""
    return {
        "actors": actors,
        "seconds": {step: round(end - begin, 1) for step, (begin, end) in run.steps.items()},
        "rows/s": speeds(run, rows),
        "rows/s once started": running(run, rows, actors),
        "memory": {step: memory(run, step, rows) for step in STEPS},
        "counters": run.counters,
        "outputs": run.outputs[:16],
    }


def middle(runs: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """The median of each speed over runs."""
    return {step: statistics.median(run[kind][step] for run in runs) for step in runs[0][kind]}


def compare(rows: int, items: int, pairs: int, folder: Path) -> dict[str, Any]:
    """All runs, as JSON; the inputs are made once."""
    begun = time.monotonic()
    inputs = folder / "inputs"
    make_inputs(rows, items, inputs)
    made = time.monotonic() - begun
    size = sum(file.stat().st_size for file in inputs.glob("*.parquet"))
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for pair in range(pairs):
        for actors in (1, 2) if pair % 2 == 0 else (2, 1):
            load = round(os.getloadavg()[0], 1)
            runs[actors].append(told(one_run(inputs, folder / "run", actors), rows, actors) | {"load before": load})
            print(json.dumps(runs[actors][-1]["rows/s"]), flush=True)
    every = [run for side in runs.values() for run in side]
    ratios = {
        f"{part}{started}": [
            two[f"rows/s{started}"][part] / one[f"rows/s{started}"][part]
            for one, two in zip(*runs.values(), strict=True)
        ]
        for part, started in (("overall", ""), (TOGETHER, ""), (TOGETHER, " once started"))
    }
    flat = [found["flat"] for run in every for found in run["memory"].values() if "flat" in found]
    return {
        "inputs": {"made in s": round(made, 1), "MB": round(size / 2**20, 1)},
        **{kind: {str(actors): middle(side, kind) for actors, side in runs.items()} for kind in SPEEDS},
        "2 actors to 1": {part: round(statistics.median(found), 3) for part, found in ratios.items()},
        "range": {part: [round(min(found), 3), round(max(found), 3)] for part, found in ratios.items()},
        "flat": all(flat) if flat else None,  # None: too few samples
        "same outputs": len({run["outputs"] for run in every}) == 1,
        "runs": every,
    }


def setting(given: argparse.Namespace) -> dict[str, Any]:
    """What was run, for the reader of the JSON."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": commit.stdout.strip() or None,
        "options": {name: getattr(given, name) for name in ("rows", "items", "pairs")},
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "memory": "resident less shared pages of the driver and its Ray, MB",
    }


def show(report: dict[str, Any]) -> None:
    """Print speeds, and the memory of the last run of each side."""
    speed = Table("rows/s", "1 actor", "2 actors", "2 to 1")
    for kind in SPEEDS:
        for step, one in report[kind]["1"].items():
            two = report[kind]["2"][step]
            speed.add_row(step + kind.removeprefix("rows/s"), f"{one:.0f}", f"{two:.0f}", f"{two / one:.2f}")
    held = Table("MB", "actors", "25%", "50%", "75%", "100%", "peak", "per 100,000 rows", "flat")
    for run in {run["actors"]: run for run in report["runs"]}.values():
        for step, found in run["memory"].items():
            if found["samples"]:
                slope = found.get("MB per 100,000 rows", {}).get("all", "")
                at = [f"{mb:.0f}" for mb in found["MB at"].values()]
                peak = f"{found['peak MB']:.0f}"
                held.add_row(step, str(run["actors"]), *at, peak, str(slope), str(found.get("flat", "")))
    console = Console()
    console.print(speed, held)
    console.print({name: report[name] for name in ("2 actors to 1", "range", "flat", "same outputs")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, help="default: 1, with --small 3")
    parser.add_argument("--small", action="store_true", help="20,000 rows")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/curate.json"))
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--actors", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.folder / "inputs", given.work, given.actors)
        return
    given.rows = 20_000 if given.small else given.rows
    if given.rows < 5000:
        parser.error("--rows must be 5000 at least: every actor needs several parts of 1000")
    given.pairs = given.pairs or (3 if given.small else 1)
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="curate-") as folder:
        report = setting(given) | compare(given.rows, given.items, given.pairs, Path(folder))
    write_json(report, given.out)
    show(report)


if __name__ == "__main__":
    main()
