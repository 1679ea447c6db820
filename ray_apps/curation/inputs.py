"""What curation reads, brought into parts: the queries in their order, and what is known of them to look up.

Nothing is held in memory whole but some bytes of each query: its hash, its draw and its group of near-duplicates.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from lrem.config import Config
from lrem.curation.curation_run import INPUT_SCHEMA, CurationRun
from lrem.curation.datasheet import NEAR_OTHERS
from lrem.curation.query_lookup import write_lookup
from lrem.curation.splits import group_draws, near_duplicate_groups, near_duplicate_signatures, split_draw
from lrem.data.files import write_json
from lrem.data.known_positives import identity
from lrem.data.schema import QRELS, QUERIES, REASONINGS, read_batches
from lrem.errors import DataError
from ray_apps.curation import resumable

GROUPS = "groups.json"


def cut(run: CurationRun) -> None:
    """Write the parts of this run, unless they are there.

    Raises:
        DataError: an input cannot be used, there is no query to train on, or a query id stands twice.
    """
    config, folder = run.config, run.folder / "input"
    if resumable.is_cut(folder):
        return
    write_lookup([] if _without_judgements(config) else _known(config), run.judgements_file)
    if config.curate.teacher == "file":
        write_lookup(_told(config), run.reasonings_file)
    keys: list[np.ndarray] = []
    drawn: list[np.ndarray] = []
    left_out = Counter[str]()

    def signed() -> Iterator[list[int]]:
        for table in queries(config, left_out):
            ids = table["query_id"].to_pylist()
            keys.append(np.array([identity(one) for one in ids], np.int64))
            drawn.append(np.array([split_draw(one, config.seed) for one in ids]))
            yield from map(near_duplicate_signatures, table["query"].to_pylist())

    labels = near_duplicate_groups(signed())
    ids = np.concatenate(keys)
    if len(np.unique(ids)) < len(ids):
        raise DataError(f"{config.path('queries')}: query_id '{_repeated(config)}' appears more than once: drop one")
    shared = group_draws(ids, np.concatenate(drawn), labels)
    sizes = np.bincount(labels)
    found = {"near-duplicates": int((sizes - 1).sum()), "largest group": int(sizes.max())}
    write_json(found | dict(left_out), run.folder / GROUPS)
    resumable.cut(_with_draws(config, shared, sizes[labels] == 1), folder, config.curate.part_rows)


def queries(config: Config, left_out: Counter[str] | None = None) -> Iterator[pa.Table]:
    """The queries that curation may use, some at a time.

    If there are splits these are the queries of train, but for near-duplicates of another split's; how many those
    are is added to `left_out`.
    """
    found = 0
    tested = _tested(config)
    for table in read_batches(config.path("queries"), QUERIES, ("category", "split")):
        if "split" in table.column_names:
            table = table.filter(pa.compute.equal(table["split"], "train"))
        if tested:
            texts = table["query"].to_pylist()
            apart = pa.array([tested.isdisjoint(near_duplicate_signatures(query)) for query in texts], pa.bool_())
            if left_out is not None:
                left_out[NEAR_OTHERS] += len(apart) - apart.true_count
            table = table.filter(apart)
        found += table.num_rows
        yield table
    if not found:
        raise DataError(f"{config.path('queries')} has no query of the split train: at least one is needed")


def _tested(config: Config) -> set[int]:
    """What queries of other splits would be near-duplicates by."""
    found: set[int] = set()
    for table in read_batches(config.path("queries"), QUERIES, ("split",)):
        if "split" not in table.column_names:
            return found
        others = table.filter(pa.compute.not_equal(table["split"], "train"))
        for query in others["query"].to_pylist():
            found.update(near_duplicate_signatures(query))
    return found


def _with_draws(config: Config, draws: np.ndarray, alone: np.ndarray) -> Iterator[pa.Table]:
    start = 0
    for table in queries(config):
        end = start + table.num_rows
        columns: dict[str, Any] = {name: table[name] for name in table.column_names if name in INPUT_SCHEMA.names}
        columns.setdefault("category", pa.nulls(table.num_rows, pa.string()))
        columns |= {"draw": draws[start:end], "alone": alone[start:end]}
        yield pa.table(columns).select(INPUT_SCHEMA.names).cast(INPUT_SCHEMA)
        start = end


def _without_judgements(config: Config) -> bool:
    """Whether there are none, nor need be: a log without clicks, and a judge who says what is relevant."""
    needed = config.curate.judge == "known" or config.curate.teacher == "catalogue"
    file = config.path("qrels")
    return not needed and file == config.default_path("qrels") and not file.exists()


def _known(config: Config) -> Iterator[tuple[str, str, int]]:
    for table in read_batches(config.path("qrels"), QRELS):
        yield from zip(*(table[name].to_pylist() for name in QRELS.names), strict=True)


def _told(config: Config) -> Iterator[tuple[str, str, None]]:
    for table in read_batches(config.path("teacher"), REASONINGS):
        for query_id, text in zip(table["query_id"].to_pylist(), table["reasoning"].to_pylist(), strict=True):
            yield query_id, text, None


def _repeated(config: Config) -> str:
    seen: set[str] = set()
    for table in queries(config):
        for query_id in table["query_id"].to_pylist():
            if query_id in seen:
                return str(query_id)
            seen.add(query_id)
    raise AssertionError("two hashes met")
