"""What a training run would take, before it is started: rows, steps, memory. Starts nothing."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lrem.batches import steps_per_epoch
from lrem.config import Config
from lrem.model import small_config
from lrem.schema import RL_PAIRS, TRIPLETS, open_table
from lrem.settings import ColdStartConfig
from lrem.sizing import Shape, memory


def plan(config: Config, stage: ColdStartConfig) -> str:
    """A few lines of text: rows, steps, parameters, and the memory of one worker by its parts.

    Raises:
        DataError: the triplets are no parquet or lack a column.
    """
    sizes = AutoConfig.from_pretrained(config.model.source) if config.model.source else small_config(config.model)
    with torch.device("meta"):
        shape = Shape.of(AutoModelForCausalLM.from_config(sizes))
    held = memory(
        shape,
        sizes.hidden_size,
        sizes.intermediate_size,
        tokens=_graph_tokens(stage, config),
        workers=stage.workers,
        zero=stage.optim.zero_stage,
        bf16=stage.optim.bf16,
        checkpointing=stage.gradient_checkpointing,
    )
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in held._asdict().items())
    return (
        f"# {_steps(config, stage)}\n"
        f"# parameters {shape.parameters / 1e6:.1f} M\n"
        f"# memory of a worker, GiB, estimated: {held.total / 2**30:.2f} ({parts})"
    )


def _steps(config: Config, stage: ColdStartConfig) -> str:
    sources = [(config.uri("triplets"), TRIPLETS)]
    if stage.objective == "direct":
        sources.append((config.uri("rl_pairs"), RL_PAIRS))
    missing = [uri for uri, _ in sources if "://" not in uri and not Path(uri).exists()]
    if missing:
        return f"steps unknown: {missing[0]} does not exist yet"
    rows = sum(open_table(uri, schema).count_rows() for uri, schema in sources)
    steps = steps_per_epoch(rows, stage.workers, stage.batch_size) * stage.epochs
    return f"rows {rows}, epochs {stage.epochs}, steps {steps} ({stage.workers} workers x {stage.batch_size} rows)"


def _graph_tokens(stage: ColdStartConfig, config: Config) -> int:
    """Padded tokens whose activations are alive at once; at most every sequence of the step at its full length."""
    limits = (config.model.max_query_tokens or 64) + (config.model.budget or 16) + (config.model.max_item_tokens or 96)
    whole = stage.batch_size * limits
    return whole if stage.graph_tokens is None else min(whole, max(stage.graph_tokens, stage.chunk_tokens))
