"""What curation writes: triplets, RL pairs, dev and test rows by the split, and the datasheet. Streams the parts."""

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lrem.config import public
from lrem.curation import datasheet
from lrem.curation.curation_run import CurationRun
from lrem.curation.split_assignment import KEPT, assign_split
from lrem.data.files import atomic_file, write_json
from lrem.data.schema import RL_PAIRS, TRIPLETS, read_items
from lrem.errors import DataError
from ray_apps.curation import resumable
from ray_apps.curation.inputs import GROUPS

TEXT = pa.string()
# Every query that the split keeps for the test, kept or not: a test set of what curation likes would flatter.
TEST = pa.schema([(name, TEXT) for name in ("query_id", "query", "category", "split", "difficulty", "reasoning")])
SCHEMAS = {"cold_start": TRIPLETS, "rl": RL_PAIRS, "dev": TRIPLETS, "test": TEST}
EXAMPLES = 12  # of kept queries, shown in the datasheet
LEFT_OUT = "left out by the split"  # of what was kept: it would part near-duplicates
Rows = dict[str, list[dict[str, Any]]]  # by part of the split


def finish(run: CurationRun) -> dict[str, Any]:
    """Write every output of this run; returns the counters.

    Raises:
        DataError: nothing is left to train on.
    """
    config = run.config
    counts = resumable.total(run.folder / "decided")
    outcomes = {name.removeprefix("outcome "): n for name, n in counts.items() if name.startswith("outcome ")}
    files = {
        "cold_start": config.path("triplets"),
        "rl": config.path("rl_pairs"),
        "dev": config.path("dev"),
        "test": config.path("test"),
    }
    written, queries, examples = _write(run, files, outcomes)
    summary = {
        "queries": sum(outcomes.values()),
        **outcomes,
        "triplets": written["cold_start"],
        "rl_pairs": written["rl"],
        "dev": written["dev"],
    }
    summary |= {name: n for name, n in ((LEFT_OUT, queries[LEFT_OUT]), ("test", written["test"])) if n}
    groups = json.loads((run.folder / GROUPS).read_text())
    counters = datasheet.CurationCounters(
        resumable.total(run.folder / "found"),
        resumable.total(run.folder / "taught"),
        counts,
        groups,
        outcomes,
        dict(queries),
        dict(written),
    )
    sheet = datasheet.build_datasheet(public(config.model_dump(mode="json")), counters, examples)
    write_json(sheet, config.path("triplets").with_name("datasheet.json"))
    with atomic_file(config.path("triplets").with_name("datasheet.md")) as part:
        part.write_text(datasheet.render_markdown(sheet), encoding="utf-8")
    return summary


def _write(
    run: CurationRun, files: dict[str, Path], outcomes: dict[str, int]
) -> tuple[Counter[str], Counter[str], list[dict[str, Any]]]:
    """Write the files of the split, those that would be empty excepted; returns rows, queries and some examples.

    Raises:
        DataError: nothing is left to train on; then no file is replaced.
    """
    config = run.config
    items = read_items(config.path("items"))
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    rows, queries, examples = Counter[str](), Counter[str](), list[dict[str, Any]]()
    with ExitStack() as open_files:
        writers: dict[str, pq.ParquetWriter] = {}
        for table in resumable.read_parts(run.folder / "decided"):
            shared: Rows = {name: [] for name in SCHEMAS}
            for row in table.to_pylist():
                name = assign_split(config.curate, row)
                made = (
                    [_tested(row)]
                    if name == "test"
                    else [row | {"item_id": i, "title": titles[i]} for i in row["items"]]
                )
                if name is None:
                    queries[LEFT_OUT] += bool(made)
                if name is None or not made:
                    continue
                shared[name] += made
                queries[name] += 1
                if row["outcome"] == KEPT and len(examples) < EXAMPLES:
                    examples.append(
                        {key: row[key] for key in ("query", "reasoning")} | {"item": titles[row["items"][0]]}
                    )
            for name, made in shared.items():
                rows[name] += len(made)
                if made and name not in writers:  # here: an empty file must not take the place of anything
                    writers[name] = pq.ParquetWriter(open_files.enter_context(atomic_file(files[name])), SCHEMAS[name])
                if made:
                    writers[name].write_table(pa.Table.from_pylist(made, SCHEMAS[name]))
        if not rows["cold_start"] or not rows["rl"]:
            raise DataError(
                f"nothing left to train on ({outcomes}): look at what most queries came to; where a teacher or a judge "
                f"failed, at dead_letters.jsonl in {config.path('triplets').parent}"
            )
        for writer in writers.values():
            writer.close()
    for name in ("dev", "test"):  # an older one of ours may hold what is trained on now
        if not rows[name] and files[name] == config.default_path(name):
            files[name].unlink(missing_ok=True)
    return rows, queries, examples


def _tested(row: dict[str, Any]) -> dict[str, Any]:
    difficulty = "hard" if row["hard"] else "easy"
    return row | {"split": "test", "difficulty": difficulty, "reasoning": row["reasoning"] if row["items"] else None}
