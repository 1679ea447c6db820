"""What both training stages share: Ray Train around a DeepSpeed engine, row shards, weights out of ZeRO."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import ray.data
import torch
from ray.actor import ActorHandle
from ray.train import DataConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import get_cosine_schedule_with_warmup

from lrem.config import Config, OptimConfig
from lrem.distributed import rank
from lrem.model import ReasoningEmbedder
from ray_apps.cluster import gpu_plan
from ray_apps.progress import progress

Row = dict[str, Any]


class RowShards(DataConfig):
    """Equal, repeatable shards: the same rows reach the same rank in every run.

    Ray's default streams blocks to whichever rank asks first, so a run could not be repeated.
    """

    def configure(
        self, datasets: dict[str, Any], world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any
    ) -> list[dict[str, Any]]:
        """One materialised split a rank; at most world_size − 1 rows are left over."""
        shards = {name: dataset.split(world_size, equal=True) for name, dataset in datasets.items()}
        return [{name: parts[i].iterator() for name, parts in shards.items()} for i in range(world_size)]


def fit(
    loop: Callable[[dict[str, Any]], None],
    config: Config,
    settings: dict[str, Any],
    dataset: ray.data.Dataset,
    workers: int,
    title: str,
    engines: int = 0,
) -> None:
    """Run `loop` on `workers` ranks under Ray Train, beside `engines` vLLM actors; returns when all have finished.

    Raises:
        ray.train.TrainingFailedError: a worker failed; its traceback is the cause.
    """
    workers, gpus = gpu_plan(config, workers, engines)
    resources = {"CPU": 1.0, "GPU": gpus} if gpus else {"CPU": 1.0}
    with progress(title) as board:
        trainer = TorchTrainer(
            loop,
            train_loop_config=settings | {"config": config.model_dump(mode="json"), "board": board},
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=resources),
            run_config=RunConfig(name=title, storage_path=str(config.run_dir / "ray_train")),
            datasets={"train": dataset},
            dataset_config=RowShards(),
        )
        _in_thread(trainer.fit)


def _in_thread(work: Callable[[], Any]) -> None:
    """Run `work` beside the main thread, which then keeps its own Ctrl-C.

    In the main thread Ray Train puts a SIGINT handler of its own in place, ends with exit code 0, and leaves
    the handler there for whatever follows.
    """
    outcome: Future[None] = Future()

    def body() -> None:
        try:
            work()
            outcome.set_result(None)
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    outcome.result()


def shard_rows() -> list[Row]:
    """This rank's rows, in memory: ids and short texts, a rank's share of a corpus."""
    rows: list[Row] = []
    for batch in ray.train.get_dataset_shard("train").iter_batches(batch_size=4096, batch_format="pyarrow"):
        rows += batch.to_pylist()
    return rows


def batches(rows: list[Row], size: int, seed: int, epochs: int) -> Iterator[list[Row]]:
    """Every row once an epoch, in an order that seed, epoch and rank decide, in like-sized batches ≤ `size`."""
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch, rank()]).permutation(len(rows))
        for part in np.array_split(order, steps_per_epoch(len(rows), size)):
            yield [rows[i] for i in part]


def steps_per_epoch(rows: int, size: int) -> int:
    """How many batches `batches` yields an epoch."""
    return -(-rows // size)


def make_engine(model: ReasoningEmbedder, optim: OptimConfig, batch_size: int, steps: int) -> Any:
    """A DeepSpeed engine around the model: AdamW, cosine with warm-up, clipping, the ZeRO stage asked for."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": batch_size,
        "gradient_accumulation_steps": 1,
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


def full_state(engine: Any) -> dict[str, torch.Tensor]:
    """The language model's whole weights on the CPU of rank 0, whatever the ZeRO stage; every rank must call.

    A tied head is in it under its own name too: vLLM's CPU build keeps a packed copy of it, which goes
    stale in silence when a weight sync leaves it out (tests/test_rollout.py).
    """
    import deepspeed

    lm = engine.module.lm
    with deepspeed.zero.GatheredParameters(list(lm.parameters()), enabled=engine.zero_optimization_stage() == 3):
        state = lm.state_dict() if rank() == 0 else {}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


class Log:
    """Rank 0's record of a run: a JSON line a step, and the driver's progress bar."""

    def __init__(self, file: Path, board: ActorHandle, total: int) -> None:
        self.board, self.total, self.step = board, total, 0
        self.stream = None
        if rank() == 0:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.stream = file.open("w", encoding="utf-8")

    def __call__(self, values: dict[str, float], note: str) -> None:
        """Record one finished step. Raises FloatingPointError where a value is not finite."""
        self.step += 1
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if bad:
            raise FloatingPointError(f"{bad} is not finite at step {self.step}: lower optim.lr or raise optim.clip")
        if self.stream:
            self.stream.write(json.dumps({"step": self.step, **values}) + os.linesep)
            self.stream.flush()
            self.board.update.remote(self.step, self.total, note)
