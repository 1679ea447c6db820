"""The loop of a training run, the same in both stages: steps, the record, the dev set, checkpoints, resuming.

Knows that a stage takes steps over rows; does not know its losses.
"""

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from lrem.config import Config, TrainConfig
from lrem.data.known_positives import identity
from lrem.modeling.model import ReasoningEmbedder
from lrem.training.distributed import rank, world_size
from ray_apps.training.checkpoints import Checkpoints
from ray_apps.training.dev_set import DevSet
from ray_apps.training.launch import Place, Shard, make_engine
from ray_apps.training.tracking import JsonLines, Log

# what may change between a run and its continuation
FREE = {
    "checkpoint",
    "restarts",
    "trackers",
    "peak_tflops",
    "log_rows",
    "chunk_tokens",
    "graph_tokens",
    "samples",
}


class StageTrainer(ABC):
    """One rank's state: its rows, the DeepSpeed engine, the checkpoints.

    Args:
        name: of the run's logs. epochs: how often every row is visited; `steps` may end the run before.
        settings: start (model folder), rows, known, dev, checkpoints, run; see the stages' `run`.
    """

    def __init__(self, name: str, stage: Any, settings: dict[str, Any], epochs: int, steps: int | None = None) -> None:
        self.name, self.stage = name, stage
        self.config = Config.model_validate(settings["config"])
        self.start, self.run = Path(settings["start"]), settings["run"]
        self.known, self.dev = ray.get([settings["known"], settings["dev"]], timeout=300)
        self.shard = Shard(settings["rows"], stage.batch_size, self.config.seed)
        self.steps = steps or self.shard.per_epoch * epochs
        self.checkpoints = Checkpoints(Path(settings["checkpoints"]), stage.checkpoint.keep)
        model = ReasoningEmbedder.load(self.start)
        torch.manual_seed(self.config.seed)  # new adapters are alike on all ranks
        self.prepare(model)
        if stage.gradient_checkpointing:
            model.lm.gradient_checkpointing_enable({"use_reentrant": False})
        self.engine = make_engine(model, stage.optim, stage.batch_size, self.steps)
        self.engine.train()
        torch.manual_seed(self.config.seed * world_size() + rank())  # dropout differs between them
        self.trained: list[int] = []  # ids of the rows that the last step trained on
        self.spent, self.started = self.checkpoints.spent(), time.monotonic()

    def prepare(self, model: ReasoningEmbedder) -> None:
        """Change the model before the engine takes it."""
        return

    def begin(self, first: int) -> None:
        """`first` steps are done; called once, before the next."""
        return

    @abstractmethod
    def step(self, place: Place) -> dict[str, float]:
        """One update; sets `trained`; returns the logged values, those of the global batch."""

    @abstractmethod
    def note(self, values: dict[str, float]) -> str:
        """What stands beside the progress bar."""

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Metrics of the dev set, on rank 0; nothing where there is none. Every rank calls."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """What the model folder says of its making, besides steps, epochs and seconds."""

    def export(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Write a whole state as a model folder."""
        dtype = torch.bfloat16 if self.stage.optim.bf16 else torch.float32
        ReasoningEmbedder.load(self.start, dtype).write(folder, state)

    def save(self, done: int, epoch: int, measured: dict[str, float]) -> None:
        """Write a checkpoint, with what the dev set measured on it."""
        record = self.record() | {
            "steps": done,
            "epochs": epoch + 1,
            "seconds": self.spent + time.monotonic() - self.started,
            "zero_stage": self.engine.zero_optimization_stage(),
        }
        if measured:
            record["dev"] = measured
        self.checkpoints.save(self.engine, done, self.run, record, self.export)


def run_steps(trainer: StageTrainer, board: ActorHandle) -> None:
    """From the newest checkpoint, or from the start, to the last step; every rank calls."""
    first = trainer.checkpoints.restore(trainer.engine)
    stage, config = trainer.stage, trainer.config
    log = Log(config, trainer.name, board, trainer.steps, first, stage.trackers)
    rows_file = config.run_dir / "logs" / f"{trainer.name}.rows-{rank()}.jsonl"
    consumed = JsonLines(rows_file, first) if stage.log_rows else None
    trainer.begin(first)
    for step in range(first, trainer.steps):
        place, done = trainer.shard.place(step), step + 1
        values = trainer.step(place)
        if consumed:
            consumed.write(done, {"epoch": place.epoch, "rows": trainer.trained})
        log(done, values, trainer.note(values))
        if done % stage.checkpoint.every == 0 or done == trainer.steps:
            measured = trainer.measure()
            if measured:
                log.add(done, {f"dev_{metric}": value for metric, value in measured.items()})
            trainer.save(done, place.epoch, measured)
    if consumed:
        consumed.close()
    log.close()


def must_stay(config: Config, stage: TrainConfig, data: str, model: str, dev: DevSet | None) -> dict[str, Any]:
    """What a resumed run has to share with the one it goes on from.

    Args:
        data: names the rows and their content. model: fingerprint of the weights that training began with.
    """
    ranked = [] if dev is None else [identity(*dev.queries, *dev.titles)]
    measured = [stage.checkpoint.k, stage.checkpoint.candidates, *ranked]  # a list, as JSON gives it back
    fixed = stage.model_dump(mode="json", exclude=FREE)
    return {"model": model, "data": data, "dev set": measured, "seed": config.seed, **fixed}
