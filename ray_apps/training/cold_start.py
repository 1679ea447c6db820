"""Stage 1 on Ray Train and DeepSpeed: SFT on the reasoning and InfoNCE on the embedding, jointly.

Reads triplets (query, reasoning, item), with `rl_pairs` also pairs without a reasoning, and writes a model folder. With
`objective: direct` it trains the baseline: the same pairs without reasoning, and InfoNCE alone.

A step, in order:

1. Each rank takes `cold_start.batch_size` rows of its shard, drawn at random. Each draws the thought that it is
   embedded with (`thoughts`): the teacher's, the model's own, none, or a corrupted one. Own thoughts are sampled for
   several steps at once. The rows are sorted by length into chunks.
2. One forward over the queries, each followed by its thought, gives the embedding at `<emb>` and, where the thought is
   the teacher's, the log-probabilities of it; the same forwards embed the queries without a thought. One over the items
   gives theirs.
3. InfoNCE contrasts each query with all items of all ranks, SFT imitates the teacher, and all is back-propagated chunk
   by chunk (GradCache): L = info_nce_weight · (L_InfoNCE + empty_weight · L_InfoNCE without thoughts) + sft_weight ·
   L_SFT.
4. One update: AdamW with a cosine schedule.

With `sft_epochs` the run begins with epochs of L_SFT alone on the teacher's thoughts. Optimiser and schedule are one:
the warm-up and the cosine extend over all steps of the run.

With a dev set, the start of the run and each checkpoint are measured with the model's own greedy thoughts, and the best
HitRate of these is exported; so no run ends with a model that is worse on the dev set than the one it began with.

Departures from the paper (arXiv 2510.14321), each with its reason and its setting:

1. SFT is a mean over the tokens of the global batch, so that neither the length of a reasoning nor the number of ranks
   changes its weight; the paper sums over a sequence. With about ten tokens per sequence the paper's weight of 0.1 is
   our default 1.0. `sft_mean=sequence` and `sft_weight=0.1` are the paper's.
2. An item that a row pairs with the query, or lists in `relevant_ids`, is never its negative, nor is the positive
   itself when another row brings it along. No setting.
3. A text beyond the model's limits is refused, so that nobody trains on cut data unaware; the paper cuts reasonings to
   16 tokens, which is `too_long=cut`.
4. τ is 0.03 (`temperature`): the paper does not state it, and 0.02 to 0.05 is usual.
5. A quarter of the queries is embedded with the model's own thoughts and a tenth with corrupted ones, because in
   serving the model reads what it wrote itself, mistakes included; the paper embeds the teacher's alone. Rows with such
   a thought have no SFT, and rows for which the teacher wrote nothing keep that, with SFT, so that the model learns
   when not to think. `thoughts={teacher: 1, own: 0, corrupted: 0}` is the paper's.
6. Every query is embedded without its thought too, at half weight, so that a query that is not reasoned over is served
   as well as by the direct baseline. Therefore `thoughts.empty` is 0. `empty_weight=0` is the paper's.
7. An epoch visits one row of each query, and the next one its next row (`rows_per_query`). `null` is the paper's.

Off by default, and not in the paper: epochs of SFT alone, InfoNCE on the RL pairs, hard negatives (if the triplets have
any), Matryoshka dimensions, LoRA; for the direct baseline, the teacher's reasoning as a further positive of its query
(`thought_positives`), which shows how much of the gain is that the reasoning names the facts. The formulas are in
lrem.training.cold_start_step and lrem.training.thoughts.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from lrem.config import ColdStartConfig, Config
from lrem.config.model import is_gguf
from lrem.data.files import atomic_folder
from lrem.data.schema import TRIPLETS, open_table, read_items, read_table
from lrem.errors import DataError, TrainingFailed
from lrem.modeling.freezing import check_freezable
from lrem.modeling.gguf import convert_gguf
from lrem.modeling.lora import add_lora, split_state
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from lrem.training.cold_start_step import (
    ColdStartBatch,
    accumulate_gradients,
    accumulate_sft_gradients,
    collate,
)
from lrem.training.distributed import sum_over_ranks, world_size
from lrem.training.gradient_observer import GradNormObserver
from lrem.training.memory_estimate import DecoderShape, mfu, peak_tflops, step_flops
from ray_apps.cluster.session import cluster
from ray_apps.training import dev_set
from ray_apps.training.checkpoints import Checkpoints
from ray_apps.training.corpus import load_triplets
from ray_apps.training.deepspeed_engine import engine_backward, update
from ray_apps.training.job import ColdStartJob
from ray_apps.training.launch import fit
from ray_apps.training.row_shards import Row, StepRows
from ray_apps.training.stage_trainer import StageTrainer, run_signature, run_steps
from ray_apps.training.step_thoughts import StepThoughts
from ray_apps.training.tracking import check_finite, require_trackers
from ray_apps.training.training_tables import training_tables


def run(config: Config, stage: ColdStartConfig, out: Path, resume: bool = False) -> dict[str, Any]:
    """Train and write the model folder `out`; return counts for the stage's report.

    Args:
        resume: continue a stopped run from its newest checkpoint.
    """
    require_trackers(stage.trackers)
    for uri, schema in training_tables(config, stage).items():
        open_table(uri, schema)  # fail fast on missing data, before the model is loaded
    checkpoints = Checkpoints(config.run_dir / "checkpoints" / out.name, stage.checkpoint.keep)
    checkpoints.check_resume(resume)
    dev = dev_set.load(config, stage.checkpoint)
    model = initial_model(config, stage)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".start", dir=out.parent) as temporary, cluster(config):
        base_model = Path(temporary) / "model"
        base_fingerprint = model.save(base_model)
        corpus = load_triplets(config, stage, base_model)
        job = ColdStartJob(
            name=out.name,
            config=config,
            stage=stage,
            base_model=base_model,
            rows=corpus.epoch,
            known_positives=ray.put(corpus.known_positives),
            dev_set=ray.put(dev),
            checkpoints=checkpoints.folder,
            signature=run_signature(config, stage, corpus.describe(), base_fingerprint, dev),
            out=out,
        )
        checkpoints.prepare(job.signature)
        try:
            fit(train, job, corpus.dataset)
        finally:
            checkpoints.remove_partial()
    with atomic_folder(out) as partial:
        checkpoints.export_best(partial)
    checkpoints.finish()
    return {"rows": corpus.rows}


def model_source(config: Config) -> str | None:
    """Return the name or folder of the pretrained model, if there is one; of a `.gguf` file, that of its conversion."""
    source = config.model.source
    return str(config.run_dir / "backbone") if source and is_gguf(source) else source


def initial_model(config: Config, stage: ColdStartConfig) -> ReasoningEmbedder:
    """Load model.source, or make a fresh model whose tokenizer is trained on the catalogue and the triplets.

    Raises:
        DataError: model.source cannot be loaded, or a Matryoshka dimension is not below the model's.
        ConfigError: the model has too few layers for `freeze_layers`.
    """
    source = model_source(config)
    if source:
        if source != config.model.source:
            convert_gguf(Path(str(config.model.source)), Path(source))
        try:
            model = ReasoningEmbedder.load(source, limits=config.model)
        except OSError as error:
            raise DataError(f"model.source={config.model.source} cannot be loaded: {error}") from error
    else:
        items, triplets = read_items(config.path("items")), read_table(config.uri("triplets"), TRIPLETS)
        texts = [*items["title"].to_pylist()]
        texts += [*triplets["query"].to_pylist(), *triplets["reasoning"].to_pylist()]
        # every text begins with a space, as the renderer writes it
        tokenizer = train_tokenizer((f" {text}" for text in texts), config.model.vocab_size)
        model = ReasoningEmbedder.from_config(config.model, tokenizer, config.seed)
    check_freezable(model.lm.config, stage.freeze_layers)
    return model.with_matryoshka(stage.matryoshka)


def train(job: ColdStartJob, board: ActorHandle) -> None:
    """Run one rank, from the newest checkpoint or from the beginning, to the last step."""
    run_steps(ColdStartTrainer(job), board)


class ColdStartTrainer(StageTrainer[ColdStartConfig]):
    """One rank of stage 1."""

    job: ColdStartJob

    def __init__(self, job: ColdStartJob) -> None:
        super().__init__(job, None, job.stage.total_epochs)
        every = self.stage.checkpoint.every
        self.thoughts = StepThoughts(self.shard, self.stage.thoughts, self.config.seed, self.engine, self.steps, every)
        cuda = self.engine.device.type == "cuda"
        self.peak_tflops = self.stage.peak_tflops or (peak_tflops(torch.cuda.get_device_name()) if cuda else None)

    @property
    def reads_head(self) -> bool:
        """Return True unless the direct baseline is trained, which has no SFT."""
        return self.stage.objective == "joint"

    def prepare_model(self, model: ReasoningEmbedder) -> None:
        """Add low-rank adapters if configured; the speed is computed for the model without them."""
        self.shape = DecoderShape.of(model.lm)
        if self.stage.lora.rank:
            try:
                add_lora(model, self.stage.lora)
            except ValueError as error:
                raise TrainingFailed(f"lora.targets={self.stage.lora.targets}: {error}") from error

    def step(self, step_rows: StepRows) -> dict[str, float]:
        """Take one update; return the values to log, over the global batch."""
        clock = [time.monotonic()]
        rows = self.shard.read(step_rows)
        sft_alone = step_rows.epoch < self.stage.total_epochs - self.stage.epochs
        if sft_alone:  # RL pairs have no SFT; every rank needs a row
            rows = [row for row in rows if row["scored"]] or rows[:1]
        self.trained_rows = [row["row"] for row in rows]
        clock.append(time.monotonic())
        batch = self._collate(step_rows.step, rows, sft_alone)
        clock.append(time.monotonic())
        engine, observer = self.engine, GradNormObserver()
        accumulate = accumulate_sft_gradients if sft_alone else accumulate_gradients
        values = accumulate(batch, self.stage, engine, engine_backward(engine), engine.device, observer)
        check_finite(step_rows.step + 1, values)  # before the weights are updated
        values |= observer.norms(engine.device)
        clock.append(time.monotonic())
        values["lr"] = engine.get_lr()[0]
        values["grad_norm"] = update(engine)
        clock.append(time.monotonic())
        names = ("data_s", "thoughts_s", "gradient_s", "optimizer_s")
        phases = {name: end - start for name, start, end in zip(names, clock, clock[1:], strict=False)}
        return values | {"epoch": step_rows.epoch} | phases | self._speed(batch, clock[-1] - clock[0])

    def _collate(self, step: int, rows: list[Row], sft_alone: bool) -> ColdStartBatch:
        """Make the rows of a step a batch, with the thoughts that its stage draws for them."""
        if self.stage.objective == "direct":
            return collate(rows, self.known_positives, with_sft=False)
        if sft_alone:
            return collate(rows, self.known_positives)._replace(items=[], item_keys=[])
        replaced = self.thoughts.of(step, rows)
        return collate(replaced, self.known_positives, without_thought=self.stage.empty_weight > 0)

    def _speed(self, batch: ColdStartBatch, seconds: float) -> dict[str, float]:
        """Return the tokens/s of all workers, and the MFU if the device's peak is known."""
        work = sum_over_ranks(torch.tensor(batch.work, dtype=torch.float64, device=self.engine.device)).tolist()
        speed = {"tokens_per_s": work[0] / seconds}
        if self.peak_tflops:
            tokens, squared_lengths, scored = (int(part) for part in work)
            flops = step_flops(self.shape, tokens, squared_lengths, scored, self.stage.freeze_layers)
            speed["mfu"] = mfu(flops, seconds, self.peak_tflops * world_size())
        return speed

    def summary(self, values: Mapping[str, float]) -> str:
        """Return the losses."""
        return " ".join(f"{name} {values[name]:.3f}" for name in ("info_nce", "sft") if name in values)

    def evaluate(self) -> dict[str, float]:
        """Return the dev set's metrics on rank 0: with the model's own greedy thoughts, and `_empty` ones without."""
        if self.dev_set is None:
            return {}
        queries = self.dev_set.queries
        reasonings: dict[str, Sequence[str | None]] = {"": [None] * len(queries)}
        if self.stage.objective == "joint":
            reasonings = {"": dev_set.own_thoughts(self.engine, queries), "_empty": [""] * len(queries)}
        return dev_set.evaluate(self.engine, self.dev_set, reasonings, self.stage.checkpoint.k, self.stage.chunk_tokens)

    def training_record(self) -> dict[str, Any]:
        """Return the objective."""
        return {"objective": self.stage.objective}

    def export(self, state: dict[str, torch.Tensor], folder: Path) -> None:
        """Write the model folder; with LoRA the adapters too, and their weights merged into the model's."""
        if self.stage.lora.rank:
            base = model_source(self.config) or str(self.job.out)
            state = split_state(self.job.base_model, self.stage.lora, state, folder, base)
        super().export(state, folder)
