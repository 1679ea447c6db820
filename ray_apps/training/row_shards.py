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

from lrem.training.batching import epoch_order, step_rows, steps_per_epoch

Row = dict[str, Any]  # one row by column name; corpus files hold the raw one, row_rendering.py defines the rendered one


class RowSharding(DataConfig):
    """Ray Train's data configuration: the same rows reach the same rank in every run, and every row exactly one rank.

    Ray's default streams each block to whichever rank asks first, so a run could not be repeated.
    """

    def configure(
        self, datasets: Mapping[str, ray.data.Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """Return one materialised split per rank; their sizes differ by at most one row."""
        splits = {name: _split(dataset, world_size) for name, dataset in datasets.items()}
        return [{name: parts[rank].iterator() for name, parts in splits.items()} for rank in range(world_size)]


def _split(dataset: ray.data.Dataset, parts: int) -> list[ray.data.Dataset]:
    count = dataset.count()
    return dataset.split_at_indices([count * i // parts for i in range(1, parts)]) if parts > 1 else [dataset]


class StepRows(NamedTuple):
    """The rows that one rank takes in one step: `step` counts from 0 over all epochs."""

    step: int
    epoch: int
    indices: np.ndarray  # into the rank's shard


class RowShard:
    """One rank's rows as an Arrow table in memory, and the steps over them.

    Args:
        total_rows: rows of the whole corpus. batch_size: rows per rank and step.
    """

    def __init__(self, total_rows: int, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        blocks = ray.train.get_dataset_shard("train").iter_batches(batch_size=None, batch_format="pyarrow")
        self.table = pa.concat_tables(list(blocks)).combine_chunks()
        self.seed, self.rank = seed, rank
        self.steps_per_epoch = steps_per_epoch(total_rows, world_size, batch_size)
        self.order, self.order_epoch = np.empty(0, dtype=np.int64), -1

    def rows_of(self, step: int) -> StepRows:
        """Return which rows a step takes: each row once per epoch, in an order set by seed, epoch and rank."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        if self.order_epoch != epoch:
            self.order = epoch_order(self.table.num_rows, self.seed, epoch, self.rank)
            self.order_epoch = epoch
        return StepRows(step, epoch, step_rows(self.order, self.steps_per_epoch, step_in_epoch))

    def read(self, step_rows: StepRows) -> list[Row]:
        """Return the rows themselves."""
        rows: list[Row] = self.table.take(pa.array(step_rows.indices)).to_pylist()
        return rows
