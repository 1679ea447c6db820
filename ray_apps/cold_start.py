"""Stage 1 on Ray Train and DeepSpeed: SFT on the reasoning and InfoNCE on the embedding, jointly.

Reads triplets, writes a model folder. `objective: direct` trains the baseline on the same pairs, with no
reasoning. Holds no formula: lrem.joint does.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ray
import torch

from lrem.adapters import add_lora, split_state
from lrem.config import Config
from lrem.distributed import rank, total, world_size
from lrem.files import atomic_folder
from lrem.joint import Batch, accumulate_gradients, collate, state_gradient_norms
from lrem.model import ReasoningEmbedder
from lrem.positives import identity
from lrem.schema import TRIPLETS, DataError, open_table, read_items, read_table
from lrem.settings import ColdStartConfig
from lrem.sizing import Shape, mfu, peak_tflops, step_flops
from lrem.tokenizer import train_tokenizer
from ray_apps import corpus, dev_set
from ray_apps.checkpoints import Checkpoints
from ray_apps.cluster import cluster
from ray_apps.tracking import JsonLines, Log, check_finite, require
from ray_apps.training import Shard, TrainingError, engine_backward, fit, make_engine, update


def run(config: Config, stage: ColdStartConfig, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train and write the model folder `out`; returns counts for the report.

    Args:
        resume: go on from the newest checkpoint of a run that was stopped.
    """
    require(stage.trackers)
    open_table(config.uri("triplets"), TRIPLETS)  # what is cheap to see is said before a model is loaded
    checkpoints = Checkpoints(config.run_dir / "checkpoints" / out.name, stage.checkpoint.keep)
    checkpoints.look(resume)
    dev = dev_set.load(config, stage)
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
            "run": _must_stay(config, stage, rows, made_of, dev),
        }
        checkpoints.begin(settings["run"])
        fit(train, config, settings, rows.dataset, stage.workers, out.name, restarts=stage.restarts)
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


def _must_stay(
    config: Config, stage: ColdStartConfig, rows: corpus.Corpus, model: str, dev: dev_set.DevSet | None
) -> dict[str, Any]:
    """What a resumed run has to share with the one it goes on from."""
    ranked = [] if dev is None else [identity(*dev.queries, *dev.titles)]
    measured = [stage.checkpoint.k, stage.checkpoint.candidates, *ranked]  # a list, as JSON gives it back
    fixed = stage.model_dump(
        mode="json",
        exclude={"checkpoint", "restarts", "trackers", "peak_tflops", "log_rows", "chunk_tokens", "graph_tokens"},
    )
    data = f"{rows.rows} rows, {rows.fingerprint:016x}"
    return {"model": model, "data": data, "dev set": measured, "seed": config.seed, **fixed}


def train(settings: dict[str, Any]) -> None:
    """One rank's run: from the newest checkpoint, or from the start, to the model folder."""
    trainer = Trainer(settings)
    first = trainer.checkpoints.restore(trainer.engine)
    name, stage = trainer.out.name, trainer.stage
    log = Log(trainer.config, name, settings["board"], trainer.steps, first, stage.trackers)
    rows_file = trainer.config.run_dir / "logs" / f"{name}.rows-{rank()}.jsonl"
    consumed = JsonLines(rows_file, first) if stage.log_rows else None
    for place in trainer.shard.places(first, trainer.steps):
        done = place.step + 1
        values = trainer.step(place)
        if consumed:
            consumed.write(done, {"epoch": place.epoch, "rows": trainer.shard.ids(place)})
        log(done, values, " ".join(f"{name} {values[name]:.3f}" for name in ("info_nce", "sft") if name in values))
        if done % stage.checkpoint.every == 0 or done == trainer.steps:
            measured = trainer.measure()
            if measured:
                log.add(done, {f"dev_{metric}": value for metric, value in measured.items()})
            trainer.save(done, place.epoch, measured)
    log.close()


class Trainer:
    """One rank's state: its rows, the DeepSpeed engine, the checkpoints."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.config = Config.model_validate(settings["config"])
        self.stage = stage = ColdStartConfig.model_validate(settings["stage"])
        self.start, self.out = Path(settings["start"]), Path(settings["out"])
        self.known, self.dev = ray.get([settings["known"], settings["dev"]], timeout=300)
        self.shard = Shard(settings["rows"], stage.batch_size, self.config.seed)
        self.steps = self.shard.per_epoch * stage.epochs
        self.run = settings["run"]
        self.checkpoints = Checkpoints(Path(settings["checkpoints"]), stage.checkpoint.keep)
        model = ReasoningEmbedder.load(self.start)
        self.shape = Shape.of(model.lm)
        torch.manual_seed(self.config.seed)  # new adapters are alike on all ranks
        if stage.lora.rank:
            _adapt(model, stage)
        if stage.gradient_checkpointing:
            model.lm.gradient_checkpointing_enable({"use_reentrant": False})
        self.engine = make_engine(model, stage.optim, stage.batch_size, self.steps)
        self.engine.train()
        torch.manual_seed(self.config.seed * world_size() + rank())  # dropout differs between them
        cuda = self.engine.device.type == "cuda"
        self.peak = stage.peak_tflops or (peak_tflops(torch.cuda.get_device_name()) if cuda else None)
        self.started = time.monotonic()

    def step(self, place: Any) -> dict[str, float]:
        """One update; returns the logged values, those of the global batch."""
        clock = [time.monotonic()]
        random = np.random.default_rng([self.config.seed, place.step, rank()])
        rows = self.shard.take(place)
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

    def _speed(self, batch: Batch, seconds: float) -> dict[str, float]:
        """tokens/s of all workers together, and MFU where the device's peak is known."""
        work = total(torch.tensor(batch.work, dtype=torch.float64, device=self.engine.device)).tolist()
        speed = {"tokens_per_s": work[0] / seconds}
        if self.peak:
            flops = step_flops(self.shape, *(int(part) for part in work))
            speed["mfu"] = mfu(flops, seconds, self.peak * world_size())
        return speed

    def measure(self) -> dict[str, float]:
        """Metrics of the dev set, on rank 0; nothing where there is none."""
        if self.dev is None:
            return {}
        return dev_set.measure(self.engine, self.dev, self.stage.checkpoint.k, self.stage.chunk_tokens)

    def save(self, done: int, epoch: int, measured: dict[str, float]) -> None:
        """Write a checkpoint, with what the dev set measured on it."""
        record: dict[str, Any] = {
            "objective": self.stage.objective,
            "steps": done,
            "epochs": epoch + 1,
            "seconds": time.monotonic() - self.started,
            "zero_stage": self.engine.zero_optimization_stage(),
        }
        if measured:
            record["dev"] = measured
        self.checkpoints.save(self.engine, done, self.run, record, self._export)

    def _export(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        if self.stage.lora.rank:
            base = self.config.model.source or str(self.out)
            state = split_state(self.start, self.stage.lora, state, folder, base)
        dtype = torch.bfloat16 if self.stage.optim.bf16 else torch.float32
        ReasoningEmbedder.load(self.start, dtype).write(folder, state)


def _adapt(model: ReasoningEmbedder, stage: ColdStartConfig) -> None:
    try:
        add_lora(model, stage.lora)
    except ValueError as error:
        raise TrainingError(f"lora.targets={stage.lora.targets}: {error}") from error
