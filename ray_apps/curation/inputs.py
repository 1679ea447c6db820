"""Curation's inputs: the queries, cut into parts in their order, and look-up files of judgements and reasonings.

Memory holds only a few bytes per query: the hash of its id, its draw for the split, and its group of near-duplicates.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lrem.config import Config
from lrem.curation.curation_run import INPUT_SCHEMA, CurationRun
from lrem.curation.datasheet import NEAR_OTHERS
from lrem.curation.query_lookup import write_lookup
from lrem.curation.splits import group_draws, near_duplicate_groups, near_duplicate_signatures, split_draw
from lrem.data.files import write_json
from lrem.data.known_positives import identity
from lrem.data.schema import QRELS, QUERIES, REASONINGS, read_batches
from lrem.errors import DataError
from ray_apps.curation.resumable import cut_into_parts, is_cut

GROUPS = "groups.json"  # in the work folder: counts of near-duplicates, for the datasheet


def cut_queries(run: CurationRun) -> None:
    """Write the look-up files and the input parts of a run, unless an earlier start of it has.

    Raises:
        DataError: an input cannot be used, there is no query to train on, or a query id is repeated.
    """
    config, folder = run.config, run.folder / "input"
    if is_cut(folder):
        return
    judgements = () if _goes_without_judgements(config) else _judgements(config)
    write_lookup(judgements, run.judgements_file, config.path("qrels"))
    if config.curate.teacher == "file":
        write_lookup(_reasonings(config), run.reasonings_file, config.path("teacher"), ["query_id"])
    groups = _near_duplicates(config)
    write_json(groups.counts, run.folder / GROUPS)
    cut_into_parts(_input_tables(config, groups), folder, config.curate.part_rows)


def train_queries(config: Config, dropped: Counter[str] | None = None) -> Iterator[pa.Table]:
    """Yield the queries to curate, a batch at a time.

    If the queries have a split, these are the queries of train without near-duplicates of queries in other splits.

    Args:
        dropped: the number of such near-duplicates is added to it.

    Raises:
        DataError: there is no query to train on.
    """
    rows, splits = 0, set[str]()
    other_signatures = _signatures_of_other_splits(config)
    for table in read_batches(config.path("queries"), QUERIES, ("category", "split")):
        if "split" in table.column_names:
            splits.update(map(str, pc.unique(table["split"]).to_pylist()))
            table = table.filter(pc.equal(table["split"], "train"))
        if other_signatures:
            texts = table["query"].to_pylist()
            unique = [other_signatures.isdisjoint(near_duplicate_signatures(text)) for text in texts]
            if dropped is not None:
                dropped[NEAR_OTHERS] += unique.count(False)
            table = table.filter(pa.array(unique, pa.bool_()))
        rows += table.num_rows
        yield table
    if not rows:
        column = f"its column 'split' has {', '.join(sorted(splits)[:5])}"
        raise DataError(
            f"{config.path('queries')} has no query with split train ({column}): add at least one, or rename the "
            "column if it means something else"
        )


def _signatures_of_other_splits(config: Config) -> set[int]:
    """Return the signatures of all queries of splits other than train."""
    signatures: set[int] = set()
    for table in read_batches(config.path("queries"), QUERIES, ("split",)):
        if "split" not in table.column_names:
            return signatures
        others = table.filter(pc.not_equal(table["split"], "train"))
        for query in others["query"].to_pylist():
            signatures.update(near_duplicate_signatures(query))
    return signatures


class _NearDuplicates(NamedTuple):
    """Groups of near-duplicate queries, in the order of `train_queries`."""

    draws: np.ndarray  # [N] float64: decides the split; the same for all queries of a group
    alone: np.ndarray  # [N] bool: the query has no near-duplicate
    counts: dict[str, int]  # for the datasheet


def _near_duplicates(config: Config) -> _NearDuplicates:
    """Group the queries.

    Raises:
        DataError: there is no query to train on, or a query id is repeated.
    """
    keys: list[np.ndarray] = []
    draws: list[np.ndarray] = []
    dropped = Counter[str]()

    def signatures() -> Iterator[list[int]]:
        for table in train_queries(config, dropped):
            ids = table["query_id"].to_pylist()
            keys.append(np.array([identity(query_id) for query_id in ids], np.int64))
            draws.append(np.array([split_draw(query_id, config.seed) for query_id in ids]))
            yield from map(near_duplicate_signatures, table["query"].to_pylist())

    labels = near_duplicate_groups(signatures())
    ids = np.concatenate(keys)
    if len(np.unique(ids)) < len(ids):
        raise DataError(
            f"{config.path('queries')}: query_id '{_first_repeated_id(config)}' occurs more than once: keep one of them"
        )
    sizes = np.bincount(labels)
    counts = {"near-duplicates": int((sizes - 1).sum()), "largest group": int(sizes.max())}
    return _NearDuplicates(group_draws(ids, np.concatenate(draws), labels), sizes[labels] == 1, counts | dict(dropped))


def _first_repeated_id(config: Config) -> str:
    seen: set[str] = set()
    for table in train_queries(config):
        for query_id in table["query_id"].to_pylist():
            if query_id in seen:
                return str(query_id)
            seen.add(query_id)
    raise AssertionError("two different query ids have the same hash")


def _input_tables(config: Config, groups: _NearDuplicates) -> Iterator[pa.Table]:
    """Yield the queries as INPUT_SCHEMA."""
    start = 0
    for table in train_queries(config):
        end = start + table.num_rows
        columns: dict[str, Any] = {name: table[name] for name in table.column_names if name in INPUT_SCHEMA.names}
        columns.setdefault("category", pa.nulls(table.num_rows, pa.string()))
        columns |= {"draw": groups.draws[start:end], "alone": groups.alone[start:end]}
        yield pa.table(columns).select(INPUT_SCHEMA.names).cast(INPUT_SCHEMA)
        start = end


def _goes_without_judgements(config: Config) -> bool:
    """Return True if there are no judgements and none are needed: a log without clicks, judged by a model."""
    needed = config.curate.judge == "known" or config.curate.teacher == "catalogue"
    file = config.path("qrels")
    return not needed and file == config.default_path("qrels") and not file.exists()


def _judgements(config: Config) -> Iterator[tuple[str, str, int]]:
    for table in read_batches(config.path("qrels"), QRELS):
        yield from zip(*(table[name].to_pylist() for name in QRELS.names), strict=True)


def _reasonings(config: Config) -> Iterator[tuple[str, str, None]]:
    for table in read_batches(config.path("teacher"), REASONINGS):
        for query_id, text in zip(table["query_id"].to_pylist(), table["reasoning"].to_pylist(), strict=True):
            yield query_id, text, None
