"""What both training stages share: Ray Train around a DeepSpeed engine, row shards, weights out of ZeRO."""

import errno
import logging
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray.data
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import ControllerError
from transformers import get_cosine_schedule_with_warmup

from lrem.config import Config, OptimConfig
from lrem.errors import DamagedCheckpoint, RewardError, RolloutError, TrainingFailed
from lrem.modeling.model import ReasoningEmbedder
from lrem.training.batching import epoch_order, step_rows, steps_per_epoch
from lrem.training.distributed import rank, world_size
from ray_apps.cluster.gpus import plan_gpus
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.progress import progress
from ray_apps.cluster.resources import bundle
from ray_apps.training.row_shards import RowShards

Row = dict[str, Any]
ROOM_S = 60.0  # in which Ray Train looks for room before it counts that as a failure
SPACE = 2**20  # bytes; a disk with less is full


def fit(
    loop: Callable[[dict[str, Any]], None],
    config: Config,
    settings: dict[str, Any],
    dataset: ray.data.Dataset,
    workers: int,
    title: str,
    engines: int = 0,
    restarts: int = 0,
) -> None:
    """Run `loop` on `workers` ranks under Ray Train, beside `engines` vLLM actors; returns when all have finished.

    A worker that is lost, `restarts` times at most, is replaced and the loop runs again on all.

    Raises:
        DataError: the cluster will never have room for the workers.
        TimeoutError: it has none within ray.start_timeout_s.
        TrainingFailed: the loop gave up for a reason that a restart would not cure.
        ray.train.TrainingFailedError: a worker failed; its traceback is the cause.
    """
    workers, gpus, _ = plan_gpus(config, workers, engines, config.rollout.tensor_parallel)
    bundles = [bundle(1.0, gpus, config.placement.training)] * workers
    wait_for_resources(bundles, f"{workers} training workers", config.ray.start_timeout_s, config.placement.workers)
    with progress(title, config.run_dir.name) as board:
        trainer = _Trainer(
            _guarded(loop),
            train_loop_config=settings | {"config": config.model_dump(mode="json"), "board": board},
            **_ways(config, title, workers, gpus, restarts),
            datasets={"train": dataset},
            dataset_config=RowShards(),
        )
        lost: Exception | None = None
        try:
            trainer.fit()
        except Exception as error:  # what a worker said of it comes first
            lost = error
        failure = ray.get(board.failure.remote(), timeout=30)
    if failure:
        raise TrainingFailed(failure) from lost
    if isinstance(lost, ControllerError):
        raise TrainingFailed(
            f"{title}: Ray Train found no room for {workers} workers ({lost}): `lrem status` says who holds it; go on "
            "with --resume where a checkpoint was written"
        ) from lost
    if lost:
        raise lost


def _ways(config: Config, title: str, workers: int, gpus: float, restarts: int) -> dict[str, Any]:
    """How Ray Train scales, keeps and recovers."""
    scaling = ScalingConfig(
        num_workers=workers,
        use_gpu=gpus > 0,
        resources_per_worker=bundle(1.0, gpus, config.placement.training),
        placement_strategy=config.placement.workers,
    )
    looks = math.ceil(config.ray.start_timeout_s / ROOM_S)  # for room; by itself it would go on for ever
    failures = FailureConfig(max_failures=restarts, controller_failure_limit=looks)
    folder = str(config.run_dir / "ray_train")
    return {
        "scaling_config": scaling,
        "run_config": RunConfig(name=title, storage_path=folder, failure_config=failures),
    }


def _guarded(loop: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """Tell the driver what a restart would not cure; Ray Train would try the same again.

    All ranks meet a TrainingFailed alike and just end. A rank that runs out of memory or disk, or whose rollouts or
    rewards fail, or who finds a checkpoint damaged, is alone: it has to fail, so that the others are stopped, and the
    restart then finds the reason on the board and ends.
    """

    def guarded(settings: dict[str, Any]) -> None:
        board = settings["board"]
        if ray.get(board.failure.remote(), timeout=30):
            return
        try:
            loop(settings)
        except (RolloutError, RewardError, DamagedCheckpoint) as error:
            ray.get(board.fail.remote(str(error)), timeout=30)
            raise
        except TrainingFailed as error:
            ray.get(board.fail.remote(str(error)), timeout=30)
        except torch.OutOfMemoryError as error:
            reason = f"out of GPU memory ({error}): lower chunk_tokens or graph_tokens, or set gradient_checkpointing"
            ray.get(board.fail.remote(reason), timeout=30)
            raise
        except (OSError, RuntimeError) as error:
            folder = Path(settings["checkpoints"])
            if _is_full(error, folder):
                reason = f"no space left in {folder} ({error}): make room, then go on with --resume"
                ray.get(board.fail.remote(f"{reason}; the newest whole checkpoint is kept"), timeout=30)
            raise

    return guarded


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether that was the disk: torch says no more than that it could not write."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or shutil.disk_usage(folder).free < SPACE


class _Trainer(TorchTrainer):
    """Ray's trainer, with Ctrl-C left to us.

    Ray Train would put a SIGINT handler in place that ends with exit code 0 and stays there for whatever follows. In a
    thread of its own it would not, but that thread would still be in Ray's core when Ctrl-C shuts Ray down: a crash.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        return


class Place(NamedTuple):
    """One step of a run: `step` from 0 over all epochs, and the rows of this rank's shard it takes."""

    step: int
    epoch: int
    rows: np.ndarray


class Shard:
    """This rank's rows as an Arrow table in memory, and the steps over them.

    Args:
        total: rows of the whole corpus. batch_size: rows of a rank and step.
    """

    def __init__(self, total: int, batch_size: int, seed: int) -> None:
        parts = ray.train.get_dataset_shard("train").iter_batches(batch_size=None, batch_format="pyarrow")
        self.table = pa.concat_tables(list(parts)).combine_chunks()
        self.seed = seed
        self.per_epoch = steps_per_epoch(total, world_size(), batch_size)
        self.order, self.drawn = np.empty(0, dtype=np.int64), -1

    def place(self, step: int) -> Place:
        """The rows of one step: every row once an epoch, in an order that seed, epoch and rank decide."""
        epoch, within = divmod(step, self.per_epoch)
        if self.drawn != epoch:
            self.order, self.drawn = epoch_order(self.table.num_rows, self.seed, epoch, rank()), epoch
        return Place(step, epoch, step_rows(self.order, self.per_epoch, within))

    def take(self, place: Place) -> list[Row]:
        """The rows of one step."""
        rows: list[Row] = self.table.take(pa.array(place.rows)).to_pylist()
        return rows


def make_engine(model: ReasoningEmbedder, optim: OptimConfig, batch_size: int, steps: int) -> Any:
    """A DeepSpeed engine around the model: AdamW, cosine with warm-up, clipping, the ZeRO stage asked for."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,  # `backward` below sets the boundary
        "gradient_clipping": optim.clip,
        "bf16": {"enabled": optim.bf16},
        "zero_optimization": {"stage": optim.zero_stage},
        "optimizer": {
            "type": "AdamW",
            # torch's own AdamW: DeepSpeed's CPU op would want a compiler on every node
            "params": {"lr": optim.lr, "weight_decay": optim.weight_decay, "torch_adam": True},
        },
        "steps_per_print": 10**9,
    }
    warmup = max(1, round(optim.warmup * steps))
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config=settings,
        lr_scheduler=lambda optimizer: get_cosine_schedule_with_warmup(optimizer, warmup, steps),
    )
    return engine


def engine_backward(engine: Any) -> Callable[[torch.Tensor, bool], None]:
    """One chunk's backward: gradients add up, and are final with the step's last chunk.

    With an accumulation of 1 and no boundary of our own, ZeRO-2 keeps the last backward alone
    (open-instruct#1498). ZeRO-3 begins to add up at the next *forward* after a backward: between two backwards
    there has to be one, or the second overwrites the first.
    """

    def backward(loss: torch.Tensor, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss)

    return backward


def update(engine: Any) -> float:
    """One optimiser step on the accumulated gradient; returns its norm before clipping, over all parameters."""
    norm = None
    if engine.zero_optimization_stage() == 0:  # DeepSpeed keeps none there
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)


def full_state(engine: Any) -> dict[str, torch.Tensor]:
    """The language model's whole weights on the CPU of rank 0, whatever the ZeRO stage; every rank must call.

    A tied head is in it under its own name too: vLLM's CPU build keeps a packed copy of it, which goes
    stale in silence when a weight sync leaves it out (tests/ray/rollouts/test_pool.py).
    """
    import deepspeed

    lm = engine.module.lm
    with deepspeed.zero.GatheredParameters(list(lm.parameters()), enabled=engine.zero_optimization_stage() == 3):
        state = lm.state_dict() if rank() == 0 else {}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
