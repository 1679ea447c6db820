"""The rollout pool from outside: start and stop it, and wait for its results, with a deadline each."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from lrem.config import Config
from lrem.errors import RolloutError
from ray_apps.cluster.gpus import plan_gpus
from ray_apps.cluster.placement import driver_node, reserve, wait_for_resources
from ray_apps.cluster.resources import bundle
from ray_apps.rollouts.engine_actors import ENGINES, engine_bundle
from ray_apps.rollouts.pool import RolloutPool


def start_pool(folder: Path, config: Config, workers: int = 0, started: bool = False) -> ActorHandle:
    """Start a pool on a model folder, beside `workers` training workers; return when its engines are up.

    Args:
        started: the workers run already, and need no further resources.

    Raises:
        DataError: the cluster can never hold engines and workers together.
        TimeoutError: it has no free resources within ray.start_timeout_s.
        RolloutError: an engine was not up in time.
    """
    rollout, limit = config.rollout, config.ray.start_timeout_s
    plan = plan_gpus(config, workers, rollout.actors, rollout.tensor_parallel)
    share = 0.4 if plan.shared else 0.9  # of the GPU's memory; a training worker may need the other half
    actor = ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=driver_node())(RolloutPool)
    training = [] if started else [bundle(1.0, plan.worker_gpus, config.placement.training)] * plan.workers
    gpus = plan.engine_gpus * rollout.tensor_parallel
    engines = [engine_bundle(config, gpus)] * rollout.actors
    what = f"{rollout.actors} rollout engines" + (f" and {plan.workers} training workers" if training else "")
    wait_for_resources([*training, *engines], what, limit)
    wait_for_resources(engines, what, limit, config.placement.engines)
    pool = actor.remote(str(folder), config, ENGINES.get(rollout.engine, rollout.engine), gpus, share)
    try:
        with reserve(training if plan.shared else [], what, limit, config.placement.workers):
            await_pool(pool, pool.start.remote(), config, f"the rollout pool's start on {folder}")
    except BaseException:
        stop_pool(pool)
        raise
    return pool


def stop_pool(pool: ActorHandle) -> None:
    """Stop the pool and its engines, and free their resources."""
    with suppress(RayError, TimeoutError):  # it may be lost
        ray.get(pool.close.remote(), timeout=30)
    ray.kill(pool)


def await_pool(pool: ActorHandle, reference: Any, config: Config, what: str) -> Any:
    """Return the result of one of the pool's methods.

    It may take long as long as the pool makes progress: calls are answered, or engines replaced.

    Args:
        what: the result's name in error messages.

    Raises:
        TimeoutError: the pool made no progress for longer than its own deadlines allow.
        RolloutError: as the pool raised it, or the pool was lost.
    """
    limit = config.rollout.timeout_s + config.rollout.sync_timeout_s + config.ray.start_timeout_s
    progress = -1
    try:
        while not ray.wait([reference], timeout=limit)[0]:
            before, progress = progress, ray.get(pool.progress.remote(), timeout=limit)
            if progress == before:
                raise TimeoutError(f"waited {limit:.0f} s for {what} without progress of the rollout pool: see its log")
        return ray.get(reference, timeout=limit)
    except RolloutError as error:
        raise RolloutError(str(getattr(error, "cause", error))) from error
    except RayActorError as error:
        raise RolloutError(f"the rollout pool was lost during {what}: run again with --resume") from error


def get_within(references: list[Any], timeout_s: float, what: str) -> list[Any]:
    """Return `ray.get` of the references, with a deadline.

    Args:
        what: the results' name in the error message.

    Raises:
        TimeoutError: the deadline passed.
    """
    try:
        return list(ray.get(references, timeout=timeout_s))
    except ray.exceptions.GetTimeoutError as error:
        raise TimeoutError(f"waited {timeout_s:.0f} s for {what}: see `ray status` for missing resources") from error
