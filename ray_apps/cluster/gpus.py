"""How GPUs are shared out between training workers and rollout engines."""

from typing import NamedTuple

import ray

from lrem.config import Config
from lrem.errors import DataError
from ray_apps.cluster.progress import console

SHARED_GPU_FRACTIONS = (0.6, 0.4)  # of a GPU: for a training worker, and for the engine that shares it


def gpu_count(config: Config) -> int:
    """Return the GPUs to plan with: `ray.gpus`, or those that the cluster has now."""
    present = int(ray.cluster_resources().get("GPU", 0))
    return present if config.ray.gpus is None else config.ray.gpus


class GpuPlan(NamedTuple):
    """The number of training workers, and the GPUs of each worker and of each rank of an engine."""

    workers: int
    worker_gpus: float
    engine_gpus: float

    @property
    def shared(self) -> bool:
        """Whether a worker and an engine use the same GPU."""
        return 0 < self.worker_gpus < 1


def plan_gpus(config: Config, workers: int, engines: int, tensor_parallel: int = 1) -> GpuPlan:
    """Assign GPUs to training workers and engines; without GPUs all of them run on CPUs.

    With fewer GPUs than actors, or with `placement.share_gpus`, a worker and an engine share one. There are never more
    workers than GPUs, and never two on one, which NCCL refuses: each takes more than half. With `tensor_parallel`
    above 1 nothing is shared, and an engine takes that many GPUs.

    Raises:
        DataError: the GPUs are too few even so.
    """
    gpus, share = gpu_count(config), config.placement.share_gpus
    required = workers + engines * tensor_parallel
    if share and tensor_parallel > 1:
        raise DataError("placement.share_gpus=true shares single GPUs: set rollout.tensor_parallel=1, or unset it")
    if gpus == 0 or (gpus >= required and not (share and workers and engines)):
        return GpuPlan(workers, float(gpus > 0), float(gpus > 0))
    if share is False:
        raise DataError(
            f"{workers} workers and {engines} vLLM engines need {required} GPUs without sharing, and there are {gpus}: "
            "lower workers or rollout.actors, or unset placement.share_gpus"
        )
    if tensor_parallel > 1:
        raise DataError(
            f"{workers} workers and {engines} vLLM engines of {tensor_parallel} GPUs each need {required} GPUs, and "
            f"there are {gpus}: lower workers, rollout.actors or rollout.tensor_parallel"
        )
    if engines == 0:  # NCCL refuses two ranks on one GPU, and fewer ranks would change the batch
        raise DataError(
            f"{workers} workers and only {gpus} GPUs: set workers to at most {gpus}, or ray.gpus to what the cluster "
            "can grow to"
        )
    workers = min(workers, gpus)
    if workers + engines > 2 * gpus:
        raise DataError(
            f"{workers} workers and {engines} vLLM engines do not fit on {gpus} GPUs, two on each: lower rollout.actors"
        )
    console.print(f"{gpus} GPUs: {workers} training workers, each sharing its GPU with a vLLM engine", highlight=False)
    return GpuPlan(workers, *SHARED_GPU_FRACTIONS)
