"""Curation without its teacher: rows/s of every step, memory over the rows, and the gain of a second actor.

A made-up shop (curate_shop.py) brings a file of reasonings in place of a teacher, so that thinking costs nothing and
everything else is the real stage. Each run is a process of its own; runs with one and two actors alternate, and their
order is reversed from pair to pair. The start and end of Ray itself are not counted; the start of the actors is.

The steps are told apart by when their parts appear: cut (reads all, finds near-duplicates), find, teach, judge, write.
Memory is sampled once per second over the driver and all processes of its Ray: resident minus shared pages, so without
the object store and mapped libraries. A step's memory is flat if the median over its last quarter of rows is at most
10 % above that of its second quarter, for the driver, the actors and the rest alike; actors start in the first.
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
from curate_shop import INPUTS, make_inputs
from rich.console import Console
from rich.table import Table

from lrem.config import Config, load_config
from lrem.data.files import sha256, write_json

PACKAGES = ("ray", "pyarrow", "bm25s", "numpy", "scipy")
OUTPUTS = ("triplets.parquet", "rl_pairs.parquet", "test.parquet")
PART_FOLDERS = {"find": "found", "teach": "taught", "judge": "decided"}  # step → folder of its parts
TOGETHER = "find, teach and judge"
STEPS = ("cut", *PART_FOLDERS, "write")
SPEEDS = ("rows/s", "rows/s once started")
FLAT = 0.10  # growth that still counts as flat
SAMPLE_S = 1.0
MIN_SAMPLES = 3  # of a quarter, to judge it


class MemorySample(NamedTuple):
    """Resident minus shared memory, MB."""

    at: float  # seconds since the epoch
    driver: float
    actors: float  # those that process parts
    ray: float  # everything else of Ray


KINDS = (*MemorySample._fields[1:], "all")


class CurateMeasurement(NamedTuple):
    """What one run left behind."""

    steps: dict[str, tuple[float, float]]  # begin and end, seconds since the epoch
    parts: dict[str, np.ndarray]  # step of PART_FOLDERS → when each part appeared, sorted
    samples: list[MemorySample]
    counters: dict[str, int]
    outputs: str  # checksum


def load_settings(inputs: Path, run_dir: Path, actors: int) -> Config:
    """Return curation's defaults over the inputs, in a Ray of its own."""
    overrides: dict[str, Any] = {f"paths.{name}": inputs / f"{name}.parquet" for name in ("items", *INPUTS)}
    overrides |= {"run_dir": run_dir, "curate.actors": actors, "curate.teacher": "file", "curate.test_share": 0.02}
    overrides |= {"ray.address": "local", "ray.num_cpus": 4}
    return load_config(None, [f"{key}={value}" for key, value in overrides.items()])


def curate(inputs: Path, run_dir: Path, actors: int) -> None:
    """Run curation in the measured process, and write when it began and ended."""
    from ray_apps.cluster.session import cluster  # only this process needs Ray
    from ray_apps.curation.curate import run

    config = load_settings(inputs, run_dir, actors)
    with cluster(config):
        began = time.time()
        counters = run(config)
        write_json({"began": began, "ended": time.time(), "counters": counters}, run_dir / "measured.json")


@contextmanager
def sample_memory(process: subprocess.Popen[bytes]) -> Iterator[list[MemorySample]]:
    """Fill a list with the memory of a process and all its descendants, until the block ends."""
    samples: list[MemorySample] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            sums = {"driver": 0.0, "actors": 0.0, "ray": 0.0}
            try:
                tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for member in tree:
                try:
                    memory, name = member.memory_info(), " ".join(member.cmdline()[:1])
                except psutil.Error:  # it has just ended
                    continue
                kind = "driver" if member.pid == process.pid else "actors" if "MapWorker" in name else "ray"
                sums[kind] += (memory.rss - memory.shared) / 2**20
            samples.append(MemorySample(time.time(), **sums))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        ended.set()
        sampler.join()


def measure(inputs: Path, run_dir: Path, actors: int) -> CurateMeasurement:
    """Run curation once in a fresh process and read what it left; its folder is deleted.

    Raises:
        SystemExit: it failed.
    """
    shutil.rmtree(run_dir, ignore_errors=True)
    command = [sys.executable, __file__, "--folder", inputs.parent, "--work", run_dir, "--actors", actors]
    process = subprocess.Popen([str(word) for word in command], env=os.environ | {"PYTHONPATH": os.getcwd()})
    with sample_memory(process) as samples:
        exit_code = process.wait()
    if exit_code:
        raise SystemExit(f"curation with {actors} actors ended with exit code {exit_code}: see its messages above")
    measured = json.loads((run_dir / "measured.json").read_text())
    curated = run_dir / "curated"
    (folder,) = (path.parent for path in curated.glob("work/*/input"))
    parts = {
        step: np.sort([part.stat().st_mtime for part in (folder / name).glob("[0-9]*.parquet")])
        for step, name in PART_FOLDERS.items()
    }
    ends = [measured["began"], (folder / "input" / "cut.json").stat().st_mtime]
    ends += [float(times[-1]) for times in parts.values()] + [measured["ended"]]
    steps = {step: (ends[i], ends[i + 1]) for i, step in enumerate(STEPS)}
    outputs = hashlib.sha256("".join(sha256(curated / name) for name in OUTPUTS).encode()).hexdigest()
    shutil.rmtree(run_dir)
    return CurateMeasurement(steps, parts, samples, measured["counters"], outputs)


def step_speeds(run: CurateMeasurement, rows: int) -> dict[str, float]:
    """Return rows/s of each step and overall."""
    seconds = {step: end - begin for step, (begin, end) in run.steps.items()}
    seconds |= {TOGETHER: sum(seconds[step] for step in PART_FOLDERS), "overall": sum(seconds.values())}
    return {step: round(rows / duration, 1) for step, duration in seconds.items()}


def warm_speeds(run: CurateMeasurement, rows: int, actors: int) -> dict[str, float]:
    """Return rows/s of the steps of PART_FOLDERS once every actor has finished a part: without the actors' start."""
    counts = {step: (len(at) - actors) / len(at) * rows for step, at in run.parts.items()}
    seconds = {step: float(at[-1] - at[actors - 1]) for step, at in run.parts.items()}
    speeds = {step: round(counts[step] / seconds[step], 1) for step in seconds}
    return speeds | {TOGETHER: round(sum(counts.values()) / sum(seconds.values()) / len(counts), 1)}


def memory_report(run: CurateMeasurement, step: str, rows: int) -> dict[str, Any]:
    """Return MB over the rows of a step; for cut and write, the share of rows done is taken as that of the time."""
    begin, end = run.steps[step]
    samples = [sample for sample in run.samples if begin <= sample.at <= end]
    if not samples:
        return {"samples": 0}
    at = np.array([sample.at for sample in samples])
    parts = run.parts.get(step)
    done = (at - begin) / (end - begin) if parts is None else np.searchsorted(parts, at, side="right") / len(parts)
    sides = np.array([[*sample[1:], sum(sample[1:])] for sample in samples])  # [S, KINDS]
    total = sides[:, -1]
    marks = (0.25, 0.5, 0.75, 1.0)
    report = {
        "samples": len(samples),
        "peak MB": round(float(total.max()), 1),
        "MB at": {f"{mark:.0%}": round(float(total[np.abs(done - mark).argmin()]), 1) for mark in marks},
    }
    second, last = sides[(done > 0.25) & (done <= 0.5)], sides[done > 0.75]
    if step == "cut" or min(len(second), len(last)) < MIN_SAMPLES:
        return report
    settled = done > 0.25
    slopes = np.polyfit(done[settled] * rows / 1e5, sides[settled], 1)[0]
    before, after = np.median(second, axis=0), np.median(last, axis=0)
    ratios = {kind: after[i] / before[i] for i, kind in enumerate(KINDS) if before[i] > 0}
    return report | {
        "median MB of quarter 4": {kind: round(float(after[i]), 1) for i, kind in enumerate(KINDS)},
        "MB per 100,000 rows": {kind: round(float(slopes[i]), 2) for i, kind in enumerate(KINDS)},
        "quarter 4 to quarter 2": {kind: round(float(ratio), 3) for kind, ratio in ratios.items()},
        "flat": all(ratio <= 1 + FLAT for ratio in ratios.values()),
    }


def run_report(run: CurateMeasurement, rows: int, actors: int) -> dict[str, Any]:
    """Return one run as JSON."""
    return {
        "actors": actors,
        "seconds": {step: round(end - begin, 1) for step, (begin, end) in run.steps.items()},
        "rows/s": step_speeds(run, rows),
        "rows/s once started": warm_speeds(run, rows, actors),
        "memory": {step: memory_report(run, step, rows) for step in STEPS},
        "counters": run.counters,
        "outputs": run.outputs[:16],
    }


def median_speeds(runs: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """Return the median of each speed over runs."""
    return {step: statistics.median(run[kind][step] for run in runs) for step in runs[0][kind]}


def compare(rows: int, items: int, pairs: int, folder: Path) -> dict[str, Any]:
    """Return all runs as JSON; the inputs are generated once."""
    started = time.monotonic()
    inputs = folder / "inputs"
    make_inputs(rows, items, inputs)
    generated_s = time.monotonic() - started
    size = sum(file.stat().st_size for file in inputs.glob("*.parquet"))
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for pair in range(pairs):
        for actors in (1, 2) if pair % 2 == 0 else (2, 1):
            load = round(os.getloadavg()[0], 1)
            report = run_report(measure(inputs, folder / "run", actors), rows, actors)
            runs[actors].append(report | {"load before": load})
            print(json.dumps(runs[actors][-1]["rows/s"]), flush=True)
    every = [run for side in runs.values() for run in side]
    ratios = {
        f"{part}{started}": [
            two[f"rows/s{started}"][part] / one[f"rows/s{started}"][part]
            for one, two in zip(*runs.values(), strict=True)
        ]
        for part, started in (("overall", ""), (TOGETHER, ""), (TOGETHER, " once started"))
    }
    flat = [memory["flat"] for run in every for memory in run["memory"].values() if "flat" in memory]
    return {
        "inputs": {"made in s": round(generated_s, 1), "MB": round(size / 2**20, 1)},
        **{kind: {str(actors): median_speeds(side, kind) for actors, side in runs.items()} for kind in SPEEDS},
        "2 actors to 1": {part: round(statistics.median(values), 3) for part, values in ratios.items()},
        "range": {part: [round(min(values), 3), round(max(values), 3)] for part, values in ratios.items()},
        "flat": all(flat) if flat else None,  # None: too few samples
        "same outputs": len({run["outputs"] for run in every}) == 1,
        "runs": every,
    }


def describe_setup(options: argparse.Namespace) -> dict[str, Any]:
    """Return what was run, for the reader of the JSON."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "commit": commit.stdout.strip() or None,
        "options": {name: getattr(options, name) for name in ("rows", "items", "pairs")},
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "memory": "resident less shared pages of the driver and its Ray, MB",
    }


def show(report: dict[str, Any]) -> None:
    """Print the speeds, and the memory of the last run of each side."""
    speed = Table("rows/s", "1 actor", "2 actors", "2 to 1")
    for kind in SPEEDS:
        for step, one in report[kind]["1"].items():
            two = report[kind]["2"][step]
            speed.add_row(step + kind.removeprefix("rows/s"), f"{one:.0f}", f"{two:.0f}", f"{two / one:.2f}")
    memory = Table("MB", "actors", "25%", "50%", "75%", "100%", "peak", "per 100,000 rows", "flat")
    for run in {run["actors"]: run for run in report["runs"]}.values():
        for step, figures in run["memory"].items():
            if figures["samples"]:
                slope = figures.get("MB per 100,000 rows", {}).get("all", "")
                at = [f"{mb:.0f}" for mb in figures["MB at"].values()]
                peak = f"{figures['peak MB']:.0f}"
                memory.add_row(step, str(run["actors"]), *at, peak, str(slope), str(figures.get("flat", "")))
    console = Console()
    console.print(speed, memory)
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
    options = parser.parse_args()
    if options.work:
        curate(options.folder / "inputs", options.work, options.actors)
        return
    options.rows = 20_000 if options.small else options.rows
    if options.rows < 5000:
        parser.error("--rows must be at least 5000: every actor needs several parts of 1000")
    options.pairs = options.pairs or (3 if options.small else 1)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="curate-") as folder:
        report = describe_setup(options) | compare(options.rows, options.items, options.pairs, Path(folder))
    write_json(report, options.out)
    show(report)


if __name__ == "__main__":
    main()
