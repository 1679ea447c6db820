"""Parts: the units in which curation works, saves and resumes.

A part is a parquet file of at most `curate.part_rows` queries, with its counters in a JSON file beside it. The queries
are cut into parts once, in their order. Every step reads the parts of one folder and writes a part of the same name
into the next: input → found → taught → decided. A part is written completely or not at all. A step that was killed
therefore resumes with the parts that its target lacks, and any number of actors writes the same files.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from lrem.config import Config
from lrem.data.counters import Counters, add_counters
from lrem.data.files import write_json, write_parquet
from ray_apps.cluster import metrics
from ray_apps.cluster.actor_pool import actor_pool
from ray_apps.cluster.progress import progress

PartWorker = Callable[[pa.Table], tuple[pa.Table, Counters]]  # the rows of a part → the rows of the next, and counters


def cut_into_parts(tables: Iterable[pa.Table], folder: Path, rows: int) -> int:
    """Write tables as parts of `rows` rows, in their order, and return the number of parts."""
    pending: list[pa.Table] = []
    parts, size = 0, 0
    for table in tables:
        pending.append(table)
        size += table.num_rows
        while size >= rows:
            joined = pa.concat_tables(pending)
            write_parquet(joined.slice(0, rows), part_file(folder, parts))
            parts, size, pending = parts + 1, size - rows, [joined.slice(rows)]
    if size:
        write_parquet(pa.concat_tables(pending), part_file(folder, parts))
        parts += 1
    write_json({"parts": parts}, folder / "cut.json")
    return parts


def is_cut(folder: Path) -> bool:
    """Return True if `cut_into_parts` has finished in this folder."""
    return (folder / "cut.json").exists()


def part_file(folder: Path, number: int) -> Path:
    """Return the path of a part."""
    return folder / f"{number:06d}.parquet"


def list_parts(folder: Path) -> list[Path]:
    """Return the parts that a folder has, in order."""
    return sorted(folder.glob("[0-9]*.parquet"))


def missing_parts(source: Path, target: Path) -> list[Path]:
    """Return the parts of `source` that `target` lacks, in order."""
    return [part for part in list_parts(source) if not (target / part.name).exists()]


def read_parts(folder: Path) -> Iterator[pa.Table]:
    """Yield the table of each part, in order."""
    for part in list_parts(folder):
        yield pq.read_table(part)


def part_counters(part: Path) -> Counters:
    """Return the counters of one part."""
    return dict(json.loads(part.with_suffix(".json").read_text(encoding="utf-8")))


def total_counters(folder: Path) -> Counters:
    """Return the sum of the counters of all parts."""
    total: Counters = {}
    for part in list_parts(folder):
        total = add_counters(total, part_counters(part))
    return total


@dataclass(frozen=True)
class PartStep:
    """One step of curation: what it does with a part, and where it runs.

    Attributes:
        title: for the progress bar, metrics and messages.
        worker: called with `args`, once per actor.
        source: the folder of the parts to read.
        target: the folder of the parts to write.
        use_gpu: give each actor a GPU, if there are any.
        on_driver: run on the driver's machine only, whose disk the worker reads.
    """

    title: str
    worker: Callable[..., PartWorker]
    args: tuple[Any, ...]
    source: Path
    target: Path
    use_gpu: bool = False
    on_driver: bool = False


class PartActor:
    """An actor that reads a part, calls the worker, and writes the result."""

    def __init__(self, step: PartStep, run: str) -> None:
        self.worker = step.worker(*step.args)
        self.labels = {"run": run, "stage": step.title}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Process the parts at the paths `source` and write them to `target`; return the rows of each."""
        rows = []
        for source, target in zip(batch["source"], batch["target"], strict=True):
            started = time.monotonic()
            table, counters = self.worker(pq.read_table(source))
            write_json(counters, Path(target).with_suffix(".json"))  # first: a part that exists has its counters
            write_parquet(table, Path(target))
            rows.append(pq.read_metadata(source).num_rows)
            metrics.count("curation_rows", rows[-1], **self.labels)
            metrics.observe("curation_part_seconds", time.monotonic() - started, **self.labels)
        return {"rows": rows}


def run_step(config: Config, step: PartStep) -> None:
    """Process every part that the step's target lacks, with `curate.actors` actors and a progress bar.

    Raises:
        DataError: no machine of the cluster could ever hold an actor.
        TimeoutError: none had room for one within `ray.start_timeout_s`.
    """
    missing = missing_parts(step.source, step.target)
    if not missing:
        return
    step.target.mkdir(parents=True, exist_ok=True)
    total, done, started = sum(pq.read_metadata(part).num_rows for part in missing), 0, time.monotonic()
    paths = [{"source": str(part), "target": str(step.target / part.name)} for part in missing]
    pool = actor_pool(config, step.title, min(config.curate.actors, len(missing)), step.use_gpu, step.on_driver)
    sources = ray.data.from_items(paths, override_num_blocks=len(paths))
    results = pool.map(sources, PartActor, (step, config.run_dir.name), batch_size=1)
    with progress(step.title, config.run_dir.name) as board:
        for batch in results.iter_batches(batch_size=None):
            done += int(sum(batch["rows"]))
            board.update.remote(done, total, f"{done / (time.monotonic() - started):.0f} rows/s")
