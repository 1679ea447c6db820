"""Pools of Ray Data actors: wait until the cluster can hold one actor, then map a dataset over all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset

from lrem.config import Config
from ray_apps.cluster.gpus import gpu_count
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.resources import Bundle, bundle


@dataclass(frozen=True)
class ActorPool:
    """A number of equal actors for one stage, each with one CPU, `gpus` GPUs and the custom `resources`."""

    title: str
    size: int
    gpus: float
    resources: Bundle
    timeout_s: float

    def map(
        self,
        rows: Dataset,
        actor: Callable[..., Any],
        args: tuple[Any, ...],
        batch_size: int,
        batch_format: str = "default",
    ) -> Dataset:
        """Return what `actor(*args)`, created once per actor, returns for each batch; computed when it is read.

        Raises:
            DataError: no machine of the cluster could ever hold an actor.
            TimeoutError: none had room for one within `timeout_s`.
        """
        wait_for_resources([bundle(1.0, self.gpus, self.resources)], f"an actor of '{self.title}'", self.timeout_s)
        return rows.map_batches(
            actor,
            fn_constructor_args=args,
            batch_size=batch_size,
            batch_format=batch_format,
            compute=ActorPoolStrategy(size=self.size),
            num_cpus=1,
            num_gpus=self.gpus,
            resources=self.resources,
        )


def actor_pool(config: Config, title: str, size: int, use_gpu: bool = True, on_driver: bool = False) -> ActorPool:
    """Return a pool placed by `placement.data`.

    Args:
        use_gpu: give each actor a GPU, if there are any.
        on_driver: place all actors on the driver's machine, whose disk they need.
    """
    gpus = 1.0 if use_gpu and gpu_count(config) else 0.0
    # every machine offers its own address as a resource
    resources = {f"node:{ray.util.get_node_ip_address()}": 0.001} if on_driver else config.placement.data
    return ActorPool(title, size, gpus, resources, config.ray.start_timeout_s)
