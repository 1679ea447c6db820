"""The rollout pool from outside: started by a driver, asked by drivers and ranks, each wait with its deadline."""

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
from ray_apps.rollouts.pool import ENGINES, RolloutPool, engine_bundle


def start_pool(folder: Path, config: Config, workers: int = 0, started: bool = False) -> ActorHandle:
    """Start a pool on one model folder, beside `workers` training workers; returns when its engines are up.

    Args:
        started: whether these run already, and need no more room.

    Raises:
        DataError: the cluster will never have room for engines and workers together.
        TimeoutError: it has none within ray.start_timeout_s.
        RolloutError: an engine was not up in time.
    """
    rollout, limit = config.rollout, config.ray.start_timeout_s
    plan = plan_gpus(config, workers, rollout.actors, rollout.tensor_parallel)
    share = 0.4 if plan.shared else 0.9  # of the GPU's memory: half where a training worker has the other
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
            await_pool(pool, pool.start.remote(), config, f"its start on {folder}")
    except BaseException:
        stop_pool(pool)
        raise
    return pool


def stop_pool(pool: ActorHandle) -> None:
    """End the pool with its engines, and give their room back."""
    with suppress(RayError, TimeoutError):  # it may be lost
        ray.get(pool.close.remote(), timeout=30)
    ray.kill(pool)


def await_pool(pool: ActorHandle, asked: Any, config: Config, what: str) -> Any:
    """The pool's answer. It may take long, while the pool gets on: calls are answered, or engines replaced.

    Raises:
        TimeoutError: nothing was answered or replaced for longer than the pool's own deadlines allow.
        RolloutError: as the pool raised it, or the pool was lost.
    """
    limit = config.rollout.timeout_s + config.rollout.sync_timeout_s + config.ray.start_timeout_s
    seen = -1
    try:
        while not ray.wait([asked], timeout=limit)[0]:
            before, seen = seen, ray.get(pool.progress.remote(), timeout=limit)
            if seen == before:
                raise TimeoutError(f"waited {limit:.0f} s for {what}, and the rollout pool does nothing: see its log")
        return ray.get(asked, timeout=limit)
    except RolloutError as error:
        raise RolloutError(str(getattr(error, "cause", error))) from error
    except RayActorError as error:
        raise RolloutError(f"the rollout pool was lost while asked for {what}: run again with --resume") from error


def get_within(references: list[Any], timeout_s: float, what: str) -> list[Any]:
    """ray.get with a deadline whose error says what was waited for.

    Raises:
        TimeoutError: the deadline passed.
    """
    try:
        return list(ray.get(references, timeout=timeout_s))
    except ray.exceptions.GetTimeoutError as error:
        raise TimeoutError(f"waited {timeout_s:.0f} s for {what}: look at `ray status` for what is missing") from error
