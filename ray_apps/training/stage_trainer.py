"""The training loop that both stages share: steps, logs, dev set, checkpoints, resuming. A stage adds its losses."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic

import ray
import torch
from ray.actor import ActorHandle

from lrem.config import Config, TrainConfig
from lrem.data.known_positives import KnownPositives, identity
from lrem.modeling.autocast import MIN_SPEEDUP, measure_speedup
from lrem.modeling.compiling import compile_layers
from lrem.modeling.encoding import use_fast_attention
from lrem.modeling.freezing import freeze_lower_layers
from lrem.modeling.model import ReasoningEmbedder
from lrem.training.distributed import rank, run_on_first_rank, world_size
from ray_apps.training.checkpoints import Checkpoints
from ray_apps.training.deepspeed_engine import make_engine
from ray_apps.training.dev_set import DevSet
from ray_apps.training.job import RunSignature, StageConfig, TrainingJob
from ray_apps.training.row_shards import RowShard, StepRows
from ray_apps.training.tracking import JsonLines, TrainingLog

OBJECTS_TIMEOUT_S = 300
# settings that may differ between a run and its continuation
FREE_TO_CHANGE = {
    "checkpoint",
    "restarts",
    "trackers",
    "peak_tflops",
    "log_rows",
    "chunk_tokens",
    "graph_tokens",
    "samples",
    "threads",
    "compile",
}


class StageTrainer(ABC, Generic[StageConfig]):
    """One rank's state: its rows, its DeepSpeed engine, the checkpoints.

    Args:
        steps: steps of the whole run; None: as many as `epochs` epochs of `job.rows` take.
    """

    def __init__(self, job: TrainingJob[StageConfig], steps: int | None, epochs: int) -> None:
        self.job: TrainingJob[StageConfig] = job
        self.stage: StageConfig = job.stage
        self.config = job.config
        self.known_positives: KnownPositives
        self.dev_set: DevSet | None
        references = [job.known_positives, job.dev_set]
        self.known_positives, self.dev_set = ray.get(references, timeout=OBJECTS_TIMEOUT_S)
        self.shard = RowShard(job.rows, self.stage.batch_size, self.config.seed, rank(), world_size())
        self.steps = steps or self.shard.steps_per_epoch * epochs
        self.checkpoints = Checkpoints(job.checkpoints, self.stage.checkpoint.keep)
        model = ReasoningEmbedder.load(job.base_model)
        torch.manual_seed(self.config.seed)  # new adapters are the same on all ranks
        self.prepare_model(model)
        if self.stage.freeze_layers:
            freeze_lower_layers(model, self.stage.freeze_layers, self.reads_head)
        use_fast_attention(model.lm, model.renderer)
        if self.stage.gradient_checkpointing:
            model.lm.gradient_checkpointing_enable({"use_reentrant": False})
            model.lm.disable_input_require_grads()  # transformers asks for them, and frozen layers would get a backward
        self.autocast_speedup: float | None = None
        model.autocast = self.stage.autocast == "always"
        if self.stage.autocast == "auto":
            model.autocast = self._choose_autocast(model)
        if self.stage.compile:
            compile_layers(model.lm)
        self.engine = make_engine(model, self.stage.optim, self.stage.batch_size, self.steps)
        self.engine.train()
        torch.manual_seed(self.config.seed * world_size() + rank())  # dropout differs between ranks
        self.trained_rows: list[int] = []  # ids of the rows of the last step
        self.earlier_seconds, self.started = self.checkpoints.trained_seconds(), time.monotonic()

    def _choose_autocast(self, model: ReasoningEmbedder) -> bool:
        """Return whether bfloat16 is faster here; a continued run keeps the choice of its beginning."""
        chosen = self.checkpoints.autocast()
        if chosen is None:
            self.autocast_speedup = run_on_first_rank(lambda: measure_speedup(model))
            chosen = self.autocast_speedup >= MIN_SPEEDUP
        return chosen

    @property
    def reads_head(self) -> bool:
        """Return True if a loss reads the language-model head."""
        return True

    def prepare_model(self, model: ReasoningEmbedder) -> None:
        """Change the model before the engine wraps it."""
        return

    def on_start(self, steps_done: int) -> None:
        """Run once after the checkpoint is restored, before the first step."""
        return

    @abstractmethod
    def step(self, step_rows: StepRows) -> dict[str, float]:
        """Take one update and set `trained_rows`; return the values to log, over the global batch."""

    @abstractmethod
    def summary(self, values: Mapping[str, float]) -> str:
        """Return the text beside the progress bar."""

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Return the dev set's metrics on rank 0, nothing elsewhere or without a dev set; every rank must call."""

    @abstractmethod
    def training_record(self) -> dict[str, Any]:
        """Return what the model folder records of its training besides steps, epochs and seconds."""

    def export(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Write a full state as a model folder."""
        dtype = torch.bfloat16 if self.stage.optim.bf16 else torch.float32
        ReasoningEmbedder.load(self.job.base_model, dtype).write(folder, state)

    def save(self, steps_done: int, epochs: int, dev_metrics: dict[str, float]) -> None:
        """Write a checkpoint, with the dev set's metrics if there are any. epochs: number of epochs begun."""
        record = self.training_record() | {
            "steps": steps_done,
            "epochs": epochs,
            "seconds": self.earlier_seconds + time.monotonic() - self.started,
            "zero_stage": self.engine.zero_optimization_stage(),
            "autocast": self.engine.module.autocast,
        }
        if dev_metrics:
            record["dev"] = dev_metrics
        self.checkpoints.save(self.engine, steps_done, self.job.signature, record, self.export)


def run_steps(trainer: StageTrainer[Any], board: ActorHandle) -> None:
    """Train from the newest checkpoint, or from the beginning, to the last step; every rank must call."""
    first = trainer.checkpoints.restore(trainer.engine)
    stage, config, name = trainer.stage, trainer.config, trainer.job.name
    log = TrainingLog(config, name, board, trainer.steps, first, stage.trackers)
    rows_file = config.run_dir / "logs" / f"{name}.rows-{rank()}.jsonl"
    rows_log = JsonLines(rows_file, first) if stage.log_rows else None
    if trainer.autocast_speedup is not None:
        log.metrics(first, {"autocast_speedup": trainer.autocast_speedup})
    trainer.on_start(first)
    if first == 0 and trainer.dev_set is not None:  # a candidate for export: no run may end worse than it began
        _checkpoint(trainer, log, steps_done=0, epochs=0)
    for step in range(first, trainer.steps):
        step_rows, done = trainer.shard.rows_of(step), step + 1
        values = trainer.step(step_rows)
        if rows_log:
            rows_log.write(done, {"epoch": step_rows.epoch, "rows": trainer.trained_rows})
        log.step(done, values, trainer.summary(values))
        if done % stage.checkpoint.every == 0 or done == trainer.steps:
            _checkpoint(trainer, log, done, step_rows.epoch + 1)
    if rows_log:
        rows_log.close()
    log.close()


def _checkpoint(trainer: StageTrainer[Any], log: TrainingLog, steps_done: int, epochs: int) -> None:
    """Measure the model on the dev set, log that, and save it."""
    dev_metrics = trainer.evaluate()
    if dev_metrics:
        log.metrics(steps_done, {f"dev_{metric}": value for metric, value in dev_metrics.items()})
    trainer.save(steps_done, epochs, dev_metrics)


def run_signature(
    config: Config, stage: TrainConfig, corpus: str, model_fingerprint: str, dev_set: DevSet | None
) -> RunSignature:
    """Return what a resumed run must share with the run it continues.

    Args:
        corpus: describes the rows and their content. model_fingerprint: that of the base model.
    """
    dev_identity = []
    if dev_set is not None:
        judged = [str(identity(*sorted(item_ids))) for item_ids in dev_set.relevant]
        dev_identity = [identity(*dev_set.queries, *dev_set.titles, *judged)]
    # a list, not a tuple: the signature is compared with one that was read from JSON
    dev = [stage.checkpoint.k, stage.checkpoint.candidates, *dev_identity]
    settings = stage.model_dump(mode="json", exclude=FREE_TO_CHANGE)
    return {"model": model_fingerprint, "data": corpus, "dev set": dev, "seed": config.seed, **settings}
