"""Curation's outputs: triplets, RL pairs, dev and test rows by the split, and the datasheet. Reads a part at a time."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from lrem.config import public
from lrem.curation import datasheet
from lrem.curation.curation_run import CurationRun
from lrem.curation.split_assignment import KEPT, assign_split
from lrem.data.files import atomic_file, write_json
from lrem.data.schema import RELEVANT, RL_PAIRS, TRIPLETS, read_items
from lrem.errors import DataError
from ray_apps.curation.inputs import GROUPS
from ray_apps.curation.resumable import read_parts, total_counters

TEXT = pa.string()
# All queries of the test share, kept or not: a test set of only those that curation kept would be too easy.
TEST = pa.schema([(name, TEXT) for name in ("query_id", "query", "category", "split", "difficulty", "reasoning")])
JUDGED_TRIPLETS, JUDGED_PAIRS = pa.schema([*TRIPLETS, *RELEVANT]), pa.schema([*RL_PAIRS, *RELEVANT])
SCHEMAS = {"cold_start": JUDGED_TRIPLETS, "rl": JUDGED_PAIRS, "dev": JUDGED_TRIPLETS, "test": TEST}
PATHS = {"cold_start": "triplets", "rl": "rl_pairs", "dev": "dev", "test": "test"}  # split → name in `paths`
EXAMPLES = 12  # kept queries that the datasheet shows
LEFT_OUT = "left out by the split"  # kept queries that no split may take without separating near-duplicates


def write_outputs(run: CurationRun) -> dict[str, Any]:
    """Write every output of a run and return the counters.

    Raises:
        DataError: nothing is left to train on; then no file is replaced.
    """
    decided = total_counters(run.folder / "decided")
    outcomes = {name.removeprefix("outcome "): n for name, n in decided.items() if name.startswith("outcome ")}
    written = _write_splits(run, outcomes)
    _write_datasheet(run, decided, outcomes, written)
    rows = written.rows
    counters = {
        "queries": sum(outcomes.values()),
        **outcomes,
        "triplets": rows["cold_start"],
        "rl_pairs": rows["rl"],
        "dev": rows["dev"],
    }
    optional = {LEFT_OUT: written.queries[LEFT_OUT], "test": rows["test"]}
    return counters | {name: n for name, n in optional.items() if n}


class _WrittenSplits(NamedTuple):
    """What the files of the split contain."""

    rows: Counter[str]  # by split
    queries: Counter[str]  # by split
    examples: list[dict[str, Any]]


class _SplitWriter:
    """Writes rows to the file of their split; a file is created with its first row, so that none is empty."""

    def __init__(self, files: Mapping[str, Path], open_files: ExitStack) -> None:
        self.files, self.open_files = files, open_files
        self.writers: dict[str, pq.ParquetWriter] = {}

    def write(self, split: str, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        if split not in self.writers:
            file = self.open_files.enter_context(atomic_file(self.files[split]))
            self.writers[split] = pq.ParquetWriter(file, SCHEMAS[split])
        self.writers[split].write_table(pa.Table.from_pylist(rows, SCHEMAS[split]))

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def _write_splits(run: CurationRun, outcomes: dict[str, int]) -> _WrittenSplits:
    """Write the files of the split, except those that would be empty.

    Raises:
        DataError: nothing is left to train on; then no file is replaced.
    """
    config = run.config
    items = read_items(config.path("items"))
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    files = {split: config.path(name) for split, name in PATHS.items()}
    written = _WrittenSplits(Counter(), Counter(), [])
    with ExitStack() as open_files:
        writer = _SplitWriter(files, open_files)
        for part in read_parts(run.folder / "decided"):
            for split, rows in _assign_rows(run, part, titles, written).items():
                written.rows[split] += len(rows)
                writer.write(split, rows)
        if not written.rows["cold_start"] or not written.rows["rl"]:
            raise DataError(
                f"nothing left to train on ({outcomes}): see what happened to most queries and, if a teacher or a "
                f"judge failed, dead_letters.jsonl in {config.path('triplets').parent}"
            )
        writer.close()
    for split in ("dev", "test"):  # our file of an earlier split may hold queries that are trained on now
        if not written.rows[split] and files[split] == config.default_path(PATHS[split]):
            files[split].unlink(missing_ok=True)
    return written


def _assign_rows(
    run: CurationRun, part: pa.Table, titles: dict[str, str], written: _WrittenSplits
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of one part by split; count its queries and collect examples in `written`."""
    by_split: dict[str, list[dict[str, Any]]] = {split: [] for split in SCHEMAS}
    for query in part.to_pylist():
        split = assign_split(run.config.curate, query)
        rows = [_test_row(query)] if split == "test" else _item_rows(query, titles)
        if split is None:
            written.queries[LEFT_OUT] += bool(rows)
        if split is None or not rows:
            continue
        by_split[split] += rows
        written.queries[split] += 1
        if query["outcome"] == KEPT and len(written.examples) < EXAMPLES:
            item = titles[query["items"][0]]
            written.examples.append({"query": query["query"], "reasoning": query["reasoning"], "item": item})
    return by_split


def _item_rows(query: dict[str, Any], titles: dict[str, str]) -> list[dict[str, Any]]:
    """Return one row per item to train on, each with all relevant items."""
    relevant = {"relevant_ids": query["relevant"]}
    return [query | {"item_id": item, "title": titles[item]} | relevant for item in query["items"]]


def _test_row(query: dict[str, Any]) -> dict[str, Any]:
    difficulty = "hard" if query["hard"] else "easy"
    reasoning = query["reasoning"] if query["items"] else None
    return query | {"split": "test", "difficulty": difficulty, "reasoning": reasoning}


def _write_datasheet(
    run: CurationRun, decided: dict[str, Any], outcomes: dict[str, int], written: _WrittenSplits
) -> None:
    counters = datasheet.CurationCounters(
        total_counters(run.folder / "found"),
        total_counters(run.folder / "taught"),
        decided,
        json.loads((run.folder / GROUPS).read_text(encoding="utf-8")),
        outcomes,
        dict(written.queries),
        dict(written.rows),
    )
    settings = public(run.config.model_dump(mode="json"))
    sheet = datasheet.build_datasheet(settings, counters, written.examples)
    file = run.config.path("triplets").with_name("datasheet.json")
    write_json(sheet, file)
    with atomic_file(file.with_suffix(".md")) as temporary:
        temporary.write_text(datasheet.render_markdown(sheet), encoding="utf-8")
