"""Repeatable row shards: which rows reach which rank, and which of them each step takes.

Light to import, without torch: Ray Train runs `RowSharding` in a process of its own.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.train import DataConfig

from lrem.training.batching import EpochRows, epoch_order, shard_bounds, step_rows, steps_per_epoch, visited_rows

Row = dict[str, Any]  # one row by column name; corpus files hold the raw one, row_rendering.py defines the rendered one


class RowSharding(DataConfig):
    """Ray Train's data configuration: the same rows reach the same rank in every run, and every row exactly one rank.

    Ray's default streams each block to whichever rank asks first, so a run could not be repeated.

    Args:
        per_query: rows of a query that an epoch visits. The rows must then be sorted by query, and all rows of a query
            reach the same rank. None: all, and the rows of a query may reach several ranks.
    """

    def __init__(self, per_query: int | None = None) -> None:
        super().__init__()
        self.per_query = per_query

    def configure(
        self, datasets: Mapping[str, ray.data.Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Return one materialised split per rank; in an epoch all visit as many rows, see `shard_bounds`."""
        splits = {name: _split(dataset, world_size, self.per_query) for name, dataset in datasets.items()}
        return [{name: parts[rank].iterator() for name, parts in splits.items()} for rank in range(world_size)]


def _split(dataset: ray.data.Dataset, parts: int, per_query: int | None) -> list[ray.data.Dataset]:
    if parts == 1:
        return [dataset]
    if per_query is None:
        count = dataset.count()
        return dataset.split_at_indices([count * i // parts for i in range(1, parts)])
    blocks = dataset.select_columns(["query_key"]).iter_batches(batch_size=None, batch_format="numpy")
    keys = np.sort(np.concatenate([block["query_key"] for block in blocks]))  # blocks may arrive in any order
    return dataset.split_at_indices(shard_bounds(keys, per_query, parts))


class StepRows(NamedTuple):
    """The rows that one rank takes in one step: `step` counts from 0 over all epochs."""

    step: int
    epoch: int
    indices: np.ndarray  # into the rank's shard


class RowShard:
    """One rank's rows as an Arrow table in memory, and the steps over them.

    Args:
        epoch_rows: what an epoch over the whole corpus visits. batch_size: rows per rank and step.
    """

    def __init__(self, epoch_rows: EpochRows, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        blocks = ray.train.get_dataset_shard("train").iter_batches(batch_size=None, batch_format="pyarrow")
        self.table = pa.concat_tables(list(blocks)).combine_chunks()
        self.query_keys = self.table["query_key"].to_numpy()
        self.seed, self.rank, self.per_query = seed, rank, epoch_rows.per_query
        self.steps_per_epoch = steps_per_epoch(epoch_rows, world_size, batch_size)
        self.order, self.order_epoch = np.empty(0, dtype=np.int64), -1

    def rows_of(self, step: int) -> StepRows:
        """Return which rows a step takes: each of the epoch's once, in an order set by seed, epoch and rank."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if self.order_epoch != epoch:
            visited = visited_rows(self.query_keys, self.per_query, epoch)
            self.order = epoch_order(visited, self.seed, epoch, self.rank)
            self.order_epoch = epoch
        return StepRows(step, epoch, step_rows(self.order, self.steps_per_epoch, step_in_epoch))

    def read(self, step_rows: StepRows) -> list[Row]:
        """Return the rows themselves."""
        rows: list[Row] = self.table.take(pa.array(step_rows.indices)).to_pylist()
        return rows
