"""Run a training loop on all ranks under Ray Train, and report a failure that a restart would not cure."""

import errno
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ray.data
import torch
from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError

from lrem.errors import DamagedCheckpoint, RewardError, RolloutError, TrainingFailed
from ray_apps.cluster.gpus import plan_gpus
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.progress import progress
from ray_apps.cluster.resources import bundle
from ray_apps.training.cpu_threads import training_env, worker_threads
from ray_apps.training.job import TrainingJob
from ray_apps.training.row_shards import RowSharding

Job = TypeVar("Job", bound=TrainingJob[Any])
SCHEDULING_ATTEMPT_S = 60.0  # after which Ray Train counts a search for free resources as failed
MIN_FREE_BYTES = 2**20  # a disk with less is full
BOARD_TIMEOUT_S = 30


def fit(loop: Callable[[Job, ActorHandle], None], job: Job, dataset: ray.data.Dataset, engines: int = 0) -> None:
    """Run `loop(job, progress board)` on `job.stage.workers` ranks; return when all have finished.

    A lost worker is replaced, at most `job.stage.restarts` times, and the loop then runs again on all ranks.

    Args:
        engines: vLLM actors that share the GPUs with the workers.

    Raises:
        DataError: the cluster can never provide the resources for the workers.
        TimeoutError: it could not provide them within ray.start_timeout_s.
        TrainingFailed: the loop failed for a reason that a restart would not cure.
        ray.train.TrainingFailedError: a worker failed; its traceback is the cause.
    """
    config = job.config
    workers, gpus, _ = plan_gpus(config, job.stage.workers, engines, config.rollout.tensor_parallel)
    bundles = [bundle(1.0, gpus, config.placement.training)] * workers
    wait_for_resources(bundles, f"{workers} training workers", config.ray.start_timeout_s, config.placement.workers)
    with progress(job.name, config.run_dir.name) as board:
        trainer = _make_trainer(loop, job, dataset, board, workers, gpus)
        failure: Exception | None = None
        try:
            trainer.fit()
        except Exception as error:  # a reason that a worker reported comes first
            failure = error
        reason = ray.get(board.failure.remote(), timeout=BOARD_TIMEOUT_S)
    if reason:
        raise TrainingFailed(reason) from failure
    if isinstance(failure, ControllerError):
        raise TrainingFailed(
            f"{job.name}: Ray Train found no free resources for {workers} workers ({failure}): `lrem status` shows "
            "what uses them; continue with --resume if a checkpoint was written"
        ) from failure
    if failure:
        raise failure


def _make_trainer(
    loop: Callable[[Job, ActorHandle], None],
    job: Job,
    dataset: ray.data.Dataset,
    board: ActorHandle,
    workers: int,
    gpus: float,
) -> TorchTrainer:
    config = job.config
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker=bundle(1.0, gpus, config.placement.training),
        placement_strategy=config.placement.workers,
    )
    attempts = math.ceil(config.ray.start_timeout_s / SCHEDULING_ATTEMPT_S)  # Ray Train's default has no limit
    one_machine = sum(node["Alive"] for node in ray.nodes()) == 1
    failures = FailureConfig(max_failures=job.stage.restarts, controller_failure_limit=attempts)
    return _Trainer(
        _reporting_failures(loop),
        train_loop_config={"job": job, "board": board},
        scaling_config=scaling,
        run_config=RunConfig(
            name=job.name,
            storage_path=str(config.run_dir / "ray_train"),
            failure_config=failures,
            worker_runtime_env={"env_vars": training_env(jemalloc=gpus == 0 and one_machine)},
        ),
        datasets={"train": dataset},
        dataset_config=RowSharding(job.rows.per_query),
    )


def _reporting_failures(loop: Callable[[Job, ActorHandle], None]) -> Callable[[dict[str, Any]], None]:
    """Wrap a loop so that a failure that a restart would not cure reaches the driver; Ray Train would just retry.

    A plain TrainingFailed occurs on all ranks alike, and they all return. Out of memory, a full disk, failed rollouts
    or rewards, and a damaged checkpoint occur on one rank: it must raise, so that Ray Train stops the others; after
    the restart every rank finds the reason on the board and returns.

    The wrapper takes Ray Train's `train_loop_config`: "job" and "board", as `_make_trainer` sets them.
    """

    def guarded(loop_config: dict[str, Any]) -> None:
        job, board = loop_config["job"], loop_config["board"]

        def report(reason: str) -> None:
            ray.get(board.fail.remote(reason), timeout=BOARD_TIMEOUT_S)

        if ray.get(board.failure.remote(), timeout=BOARD_TIMEOUT_S):
            return
        torch.set_num_threads(job.stage.threads or worker_threads(get_context().get_local_world_size()))
        try:
            loop(job, board)
        except (RolloutError, RewardError, DamagedCheckpoint) as error:
            report(str(error))
            raise
        except TrainingFailed as error:
            report(str(error))
        except torch.OutOfMemoryError as error:
            report(f"out of GPU memory ({error}): lower chunk_tokens or graph_tokens, or set gradient_checkpointing")
            raise
        except (OSError, RuntimeError) as error:
            if _is_disk_full(error, job.checkpoints):
                report(
                    f"no space left in {job.checkpoints} ({error}): free some space, then continue with --resume; the "
                    "newest complete checkpoint is kept"
                )
            raise

    return guarded


def _is_disk_full(error: Exception, folder: Path) -> bool:
    """Return True if the disk is full; torch only raises a RuntimeError without an error number."""
    return (
        getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or shutil.disk_usage(folder).free < MIN_FREE_BYTES
    )


class _Trainer(TorchTrainer):
    """Ray's trainer without its SIGINT handler, so that Ctrl-C stays ours.

    Ray Train's handler ends the process with exit code 0 and stays installed afterwards. Training in another thread
    would avoid the handler, but that thread would still be in Ray's core when Ctrl-C shuts Ray down, which crashes.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        return
