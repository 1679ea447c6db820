"""Which rows reach which rank. Light to import: Ray Train runs it in a process of its own."""

from typing import Any

import ray.data
from ray.train import DataConfig


class RowShards(DataConfig):
    """Repeatable shards: the same rows reach the same rank in every run, every row one rank.

    Ray's default streams blocks to whichever rank asks first, so a run could not be repeated.
    """

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any
    ) -> list[dict[str, Any]]:
        """One materialised split a rank, of sizes that differ by at most one."""
        shards = {name: _split(dataset, world_size) for name, dataset in datasets.items()}
        return [{name: parts[i].iterator() for name, parts in shards.items()} for i in range(world_size)]


def _split(dataset: ray.data.Dataset, parts: int) -> list[ray.data.Dataset]:
    count = dataset.count()
    return dataset.split_at_indices([count * i // parts for i in range(1, parts)]) if parts > 1 else [dataset]
