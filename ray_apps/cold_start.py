"""Stage 1 on Ray Train and DeepSpeed: SFT on the reasoning and InfoNCE on the embedding, jointly.

Reads triplets, writes a model folder. `objective: direct` trains the baseline on the same pairs, with no
reasoning. Holds no formula: lrem.losses does.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import ray.data
import torch

from lrem.config import ColdStartConfig, Config
from lrem.losses import global_loss, info_nce, sft
from lrem.model import ReasoningEmbedder, Sequences, pad
from lrem.schema import RL_PAIRS, TRIPLETS, DataError, read_items, read_table
from lrem.template import Renderer
from lrem.tokenizer import train_tokenizer
from ray_apps.cluster import cluster
from ray_apps.training import Log, Row, batches, fit, full_state, make_engine, shard_rows, steps_per_epoch


def run(config: Config, stage: ColdStartConfig, out: Path) -> dict[str, Any]:
    """Train and write the model folder `out`; returns counts for the report."""
    table = read_table(config.path("triplets"), TRIPLETS)
    if stage.objective == "direct":  # the pairs of both stages, so that neither side knows more
        pairs = read_table(config.path("rl_pairs"), RL_PAIRS)
        table = pa.concat_tables([table.drop_columns("reasoning"), pairs.select(RL_PAIRS.names)])
    if table.num_rows < stage.workers * 2:
        raise DataError(f"{table.num_rows} rows for {stage.workers} workers: lower workers or add data")
    model = initial_model(config)
    dataset = with_keys(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", suffix=".start", dir=out.parent) as start, cluster(config):
        model.save(Path(start) / "model")
        settings = {"stage": stage.model_dump(mode="json"), "start": f"{start}/model", "out": str(out)}
        rows = ray.data.from_arrow(dataset).random_shuffle(seed=config.seed)
        fit(train, config, settings, rows, stage.workers, out.name)
    return {"rows": table.num_rows}


def initial_model(config: Config) -> ReasoningEmbedder:
    """The named model, or a fresh one whose tokenizer is trained on catalogue and triplets."""
    if config.model.source:
        return ReasoningEmbedder.load(config.model.source)
    items, triplets = read_items(config.path("items")), read_table(config.path("triplets"), TRIPLETS)
    texts = [*items["title"].to_pylist()]
    texts += [*triplets["query"].to_pylist(), *triplets["reasoning"].to_pylist()]
    # every text begins with a space, as the renderer writes it
    tokenizer = train_tokenizer((f" {text}" for text in texts), config.model.vocab_size)
    return ReasoningEmbedder.from_config(config.model, tokenizer, config.seed)


def with_keys(table: pa.Table) -> pa.Table:
    """Add integer identities of query and item: what the losses compare across ranks."""
    for name in ("query", "item"):
        codes = table[f"{name}_id"].combine_chunks().dictionary_encode().indices.cast(pa.int64())
        table = table.append_column(f"{name}_key", codes)
    return table


def train(settings: dict[str, Any]) -> None:
    """One rank's training loop."""
    config = Config.model_validate(settings["config"])
    stage = ColdStartConfig.model_validate(settings["stage"])
    model = ReasoningEmbedder.load(settings["start"])
    rows = [render(model.renderer, row, stage.objective) for row in shard_rows()]
    steps = steps_per_epoch(len(rows), stage.batch_size) * stage.epochs
    engine = make_engine(model, stage.optim, stage.batch_size, steps)
    out = Path(settings["out"])
    log = Log(config.run_dir / "logs" / f"{out.name}.jsonl", settings["board"], steps)
    started = time.monotonic()
    for batch in batches(rows, stage.batch_size, config.seed, stage.epochs):
        log(*step(engine, batch, stage))
    record = {
        "objective": stage.objective,
        "steps": engine.global_steps,
        "seconds": time.monotonic() - started,
        "zero_stage": engine.zero_optimization_stage(),
    }
    state = full_state(engine)
    if log.stream:
        model.save(out, state, record)


def step(engine: Any, batch: list[Row], stage: ColdStartConfig) -> tuple[dict[str, float], str]:
    """One update on rendered rows; returns the logged values and the note beside the progress bar."""
    queries, items, query_keys, item_keys = collate(batch)
    encoded, item_embeddings = engine(queries.to(engine.device), items.to(engine.device))
    positives = torch.arange(len(batch), device=engine.device)
    query_keys, item_keys = query_keys.to(engine.device), item_keys.to(engine.device)
    contrast = info_nce(encoded.embeddings, item_embeddings, positives, query_keys, item_keys, stage.temperature)
    values = {"info_nce": global_loss(contrast)}
    loss = stage.info_nce_weight * contrast
    if stage.objective == "joint":
        imitation = sft(encoded.log_probs, queries.scored.to(engine.device))
        values["sft"] = global_loss(imitation)
        loss = loss + stage.sft_weight * imitation
    engine.backward(loss)
    engine.step()
    values |= {"lr": engine.get_lr()[0], "grad_norm": float(engine.get_global_grad_norm() or 0.0)}
    return values, " ".join(f"{name} {values[name]:.3f}" for name in ("info_nce", "sft") if name in values)


def render(renderer: Renderer, row: Row, objective: str) -> Row:
    """Add the row's token ids, once for all epochs: `query_ids`, `scored` [start, end) of it, `item_ids`."""
    ids = renderer.query(row["query"], row["reasoning"] if objective == "joint" else None)
    start = len(renderer.query_prompt(row["query"])) if objective == "joint" else len(ids)
    return row | {"query_ids": ids, "scored": (start, len(ids)), "item_ids": renderer.item(row["title"])}


def collate(batch: list[Row]) -> tuple[Sequences, Sequences, torch.Tensor, torch.Tensor]:
    """Rendered rows → query sequences with the completion scored, item sequences, keys of queries and items [B]."""
    queries = pad([row["query_ids"] for row in batch], [row["scored"] for row in batch])
    keys = [torch.tensor([row[name] for row in batch]) for name in ("query_key", "item_key")]
    return queries, pad([row["item_ids"] for row in batch]), keys[0], keys[1]
