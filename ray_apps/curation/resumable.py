"""Work that is done part by part on Ray Data and survives being killed: a part that is on disk is not done again.

Every part is one parquet file, written whole or not at all, with a JSON of its counters beside it. Which rows make a
part is decided once, by their order, so whoever runs again, with however many actors, gets the same files.
Knows files and Ray Data; does not know what the work is.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from lrem.config import Config
from lrem.data.counters import Counters, add_counters
from lrem.data.files import write_json, write_parquet
from ray_apps.cluster import metrics
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.progress import progress
from ray_apps.cluster.resources import bundle


def cut(tables: Iterable[pa.Table], folder: Path, rows: int) -> int:
    """Write tables as parts of `rows` rows, in their order; returns how many parts. Done once: see `is_cut`."""
    waiting: list[pa.Table] = []
    parts, size = 0, 0
    for table in tables:
        waiting.append(table)
        size += table.num_rows
        while size >= rows:
            whole = pa.concat_tables(waiting)
            write_parquet(whole.slice(0, rows), part_file(folder, parts))
            parts, size, waiting = parts + 1, size - rows, [whole.slice(rows)]
    if size:
        write_parquet(pa.concat_tables(waiting), part_file(folder, parts))
        parts += 1
    write_json({"parts": parts}, folder / "cut.json")
    return parts


def is_cut(folder: Path) -> bool:
    """Whether `cut` has come to its end in this folder."""
    return (folder / "cut.json").exists()


def part_file(folder: Path, number: int) -> Path:
    """Where a part lies."""
    return folder / f"{number:06d}.parquet"


def parts_of(folder: Path) -> list[Path]:
    """The parts that are there, in order."""
    return sorted(folder.glob("[0-9]*.parquet"))


def counts_of(part: Path) -> Counters:
    """The counters that the work left beside a part."""
    return dict(json.loads(part.with_suffix(".json").read_text()))


class Worker:
    """An actor that does parts: reads one, calls the work, writes what comes out."""

    def __init__(
        self,
        make: Callable[..., Callable[[pa.Table], tuple[pa.Table, Counters]]],
        args: tuple[Any, ...],
        run: str,
        title: str,
    ) -> None:
        self.work, self.labels = make(*args), {"run": run, "stage": title}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """source, target paths of parts → rows done in each."""
        rows = []
        for source, target in zip(batch["source"], batch["target"], strict=True):
            begun = time.monotonic()
            out, counts = self.work(pq.read_table(source))
            write_json(counts, Path(target).with_suffix(".json"))
            write_parquet(out, Path(target))
            rows.append(pq.read_metadata(source).num_rows)
            metrics.count("curation_rows", rows[-1], **self.labels)
            metrics.observe("curation_part_seconds", time.monotonic() - begun, **self.labels)
        return {"rows": rows}


def run_parts(
    config: Config,
    title: str,
    make: Callable[..., Callable[[pa.Table], tuple[pa.Table, Counters]]],
    args: tuple[Any, ...],
    source: Path,
    target: Path,
    num_gpus: float = 0,
    here: bool = False,
) -> None:
    """Do every part of the folder `source` that the folder `target` lacks, by curate.actors, with a progress bar.

    Args:
        make: called in each actor with `args`; returns the work, a table → (a table, counters).
        here: on this machine alone, whose disk the work needs.

    Raises:
        DataError: no machine of the cluster will ever have room for an actor.
        TimeoutError: none had it within ray.start_timeout_s.
    """
    todo = [part for part in parts_of(source) if not (target / part.name).exists()]  # counters come first
    if not todo:
        return
    target.mkdir(parents=True, exist_ok=True)
    # a machine offers its own address as a resource
    asked = {f"node:{ray.util.get_node_ip_address()}": 0.001} if here else config.placement.data
    wait_for_resources([bundle(1.0, num_gpus, asked)], f"an actor of '{title}'", config.ray.start_timeout_s)
    sizes = [pq.read_metadata(part).num_rows for part in todo]
    total, done, begun = sum(sizes), 0, time.monotonic()
    rows = [{"source": str(part), "target": str(target / part.name)} for part in todo]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Worker,
        fn_constructor_args=(make, args, config.run_dir.name, title),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(config.curate.actors, len(todo))),
        num_cpus=1,
        num_gpus=num_gpus,
        resources=asked,
    )
    with progress(title, config.run_dir.name) as board:
        for batch in made.iter_batches(batch_size=None):
            done += int(sum(batch["rows"]))
            board.update.remote(done, total, f"{done / (time.monotonic() - begun):.0f} rows/s")


def read_parts(folder: Path) -> Iterator[pa.Table]:
    """The tables of all parts, one after another."""
    for part in parts_of(folder):
        yield pq.read_table(part)


def total(folder: Path) -> Counters:
    """The counters of all parts, added up."""
    found: Counters = {}
    for part in parts_of(folder):
        found = add_counters(found, counts_of(part))
    return found
