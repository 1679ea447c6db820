"""Stage 1 on Ray Train and DeepSpeed: SFT on the reasoning and InfoNCE on the embedding, jointly.

Reads triplets, writes a model folder. `objective: direct` trains the baseline on the same pairs, with no
reasoning. Holds no formula: lrem.training.cold_start_step does.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch

from lrem.config import ColdStartConfig, Config
from lrem.data.files import atomic_folder
from lrem.data.schema import TRIPLETS, open_table, read_items, read_table
from lrem.errors import DataError, TrainingFailed
from lrem.modeling.lora import add_lora, split_state
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from lrem.training.cold_start_step import ColdStartBatch, accumulate_gradients, collate, state_gradient_norms
from lrem.training.distributed import rank, sum_over_ranks, world_size
from lrem.training.memory_estimate import DecoderShape, mfu, peak_tflops, step_flops
from ray_apps.cluster.session import cluster
from ray_apps.training import corpus, dev_set
from ray_apps.training.checkpoints import Checkpoints
from ray_apps.training.launch import Place, engine_backward, fit, update
from ray_apps.training.stage_trainer import StageTrainer, must_stay, run_steps
from ray_apps.training.tracking import check_finite, require


def run(config: Config, stage: ColdStartConfig, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train and write the model folder `out`; returns counts for the report.

    Args:
        resume: go on from the newest checkpoint of a run that was stopped.
    """
    require(stage.trackers)
    open_table(config.uri("triplets"), TRIPLETS)  # what is cheap to see is said before a model is loaded
    checkpoints = Checkpoints(config.run_dir / "checkpoints" / out.name, stage.checkpoint.keep)
    checkpoints.look(resume)
    dev = dev_set.load(config, stage.checkpoint, stage.objective == "joint")
    model = initial_model(config, stage)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".start", dir=out.parent) as start, cluster(config):
        start_model = Path(start) / "model"
        made_of = model.save(start_model)
        rows = corpus.load(config, stage, start_model)
        settings = {
            "stage": stage.model_dump(mode="json"),
            "start": str(start_model),
            "out": str(out),
            "rows": rows.rows,
            "known": ray.put(rows.known),
            "dev": ray.put(dev),
            "checkpoints": str(checkpoints.folder),
            "run": must_stay(config, stage, f"{rows.rows} rows, {rows.fingerprint:016x}", made_of, dev),
        }
        checkpoints.begin(settings["run"])
        try:
            fit(train, config, settings, rows.dataset, stage.workers, out.name, restarts=stage.restarts)
        finally:
            checkpoints.sweep()
    with atomic_folder(out) as part:
        checkpoints.export(part)
    checkpoints.finish()
    return {"rows": rows.rows}


def initial_model(config: Config, stage: ColdStartConfig) -> ReasoningEmbedder:
    """The named model, or a fresh one whose tokenizer is trained on catalogue and triplets.

    Raises:
        DataError: model.source cannot be loaded, or a Matryoshka dimension is not below the model's.
    """
    if config.model.source:
        try:
            model = ReasoningEmbedder.load(config.model.source, limits=config.model)
        except OSError as error:
            raise DataError(f"model.source={config.model.source} cannot be loaded: {error}") from error
    else:
        items, triplets = read_items(config.path("items")), read_table(config.uri("triplets"), TRIPLETS)
        texts = [*items["title"].to_pylist()]
        texts += [*triplets["query"].to_pylist(), *triplets["reasoning"].to_pylist()]
        # every text begins with a space, as the renderer writes it
        tokenizer = train_tokenizer((f" {text}" for text in texts), config.model.vocab_size)
        model = ReasoningEmbedder.from_config(config.model, tokenizer, config.seed)
    return model.with_matryoshka(stage.matryoshka)


def train(settings: dict[str, Any]) -> None:
    """One rank's run: from the newest checkpoint, or from the start, to the last step."""
    run_steps(Trainer(settings), settings["board"])


class Trainer(StageTrainer):
    """One rank's state: its rows, the DeepSpeed engine, the checkpoints."""

    stage: ColdStartConfig

    def __init__(self, settings: dict[str, Any]) -> None:
        stage = ColdStartConfig.model_validate(settings["stage"])
        super().__init__(Path(settings["out"]).name, stage, settings, stage.epochs)
        self.out = Path(settings["out"])
        cuda = self.engine.device.type == "cuda"
        self.peak = stage.peak_tflops or (peak_tflops(torch.cuda.get_device_name()) if cuda else None)

    def prepare(self, model: ReasoningEmbedder) -> None:
        """Low-rank adapters, where they are asked for; the shape is the model's without them."""
        self.shape = DecoderShape.of(model.lm)
        if self.stage.lora.rank:
            _adapt(model, self.stage)

    def step(self, place: Place) -> dict[str, float]:
        """One update; returns the logged values, those of the global batch."""
        clock = [time.monotonic()]
        random = np.random.default_rng([self.config.seed, place.step, rank()])
        rows = self.shard.take(place)
        self.trained = [row["row"] for row in rows]
        batch = collate(rows, self.known, self.stage.objective == "joint", self.stage.thought_dropout, random)
        clock.append(time.monotonic())
        engine = self.engine
        values = accumulate_gradients(batch, self.stage, engine, engine_backward(engine), engine.device)
        check_finite(place.step + 1, values)  # before the weights take it
        values |= state_gradient_norms(engine.module.state_gradients, engine.device)
        clock.append(time.monotonic())
        values["lr"] = engine.get_lr()[0]
        values["grad_norm"] = update(engine)
        clock.append(time.monotonic())
        names = ("data_s", "gradient_s", "optimizer_s")
        phases = {name: end - begin for name, begin, end in zip(names, clock, clock[1:], strict=False)}
        return values | {"epoch": place.epoch} | phases | self._speed(batch, clock[-1] - clock[0])

    def _speed(self, batch: ColdStartBatch, seconds: float) -> dict[str, float]:
        """tokens/s of all workers together, and MFU where the device's peak is known."""
        work = sum_over_ranks(torch.tensor(batch.work, dtype=torch.float64, device=self.engine.device)).tolist()
        speed = {"tokens_per_s": work[0] / seconds}
        if self.peak:
            flops = step_flops(self.shape, *(int(part) for part in work))
            speed["mfu"] = mfu(flops, seconds, self.peak * world_size())
        return speed

    def note(self, values: dict[str, float]) -> str:
        """The losses."""
        return " ".join(f"{name} {values[name]:.3f}" for name in ("info_nce", "sft") if name in values)

    def measure(self) -> dict[str, float]:
        """Metrics of the dev set, on rank 0; nothing where there is none."""
        if self.dev is None:
            return {}
        return dev_set.measure(self.engine, self.dev, self.stage.checkpoint.k, self.stage.chunk_tokens)

    def record(self) -> dict[str, Any]:
        """What trained the model."""
        return {"objective": self.stage.objective}

    def export(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Adapters apart, and merged."""
        if self.stage.lora.rank:
            base = self.config.model.source or str(self.out)
            state = split_state(self.start, self.stage.lora, state, folder, base)
        super().export(state, folder)


def _adapt(model: ReasoningEmbedder, stage: ColdStartConfig) -> None:
    try:
        add_lora(model, stage.lora)
    except ValueError as error:
        raise TrainingFailed(f"lora.targets={stage.lora.targets}: {error}") from error
