"""What a training run would take: rows, steps, parameters, memory. Starts nothing."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from lrem.config import ColdStartConfig, Config, ModelConfig
from lrem.config.model import pretrained_source
from lrem.data.known_positives import query_identity
from lrem.data.schema import QUERIES, open_table, read_batches
from lrem.errors import DataError
from lrem.modeling.freezing import freeze
from lrem.modeling.lora import adapt
from lrem.modeling.model import override_limits, small_qwen2_config
from lrem.modeling.template import COMPACT
from lrem.training.batching import EpochRows, steps_per_epoch
from lrem.training.memory_estimate import DecoderShape, StepSize, estimate_memory
from ray_apps.training.training_tables import training_tables


def estimate_training(config: Config, stage: ColdStartConfig) -> str:
    """Return YAML comments: rows, steps, parameters, and the memory of one worker by component.

    Raises:
        DataError: the triplets are not parquet or lack a column, or model.source cannot be loaded.
    """
    sizes = _model_config(config.model)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(sizes)
        shape = DecoderShape.of(lm)
        trained = adapt(lm, stage.lora, [0, 1, 2]) if stage.lora.rank else lm  # any three tokens
        if stage.freeze_layers:
            freeze(lm, stage.freeze_layers, [0, 1, 2])
        trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    components = estimate_memory(
        shape._replace(layers=shape.layers - stage.freeze_layers),  # frozen ones keep no activations
        sizes,
        _largest_load(config, stage),
        trainable,
        stage.workers,
        stage.optim.zero_stage,
        stage.optim.bf16,
        stage.gradient_checkpointing,
    )
    parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in components._asdict().items())
    return (
        f"# {_steps(config, stage)}\n"
        f"# parameters {shape.parameters / 1e6:.1f} M\n"
        f"# memory of a worker, GiB, estimated: {sum(components) / 2**30:.2f} ({parts})"
    )


def _model_config(model: ModelConfig) -> PretrainedConfig:
    if not model.source:
        return small_qwen2_config(model)
    try:
        name, arguments = pretrained_source(model.source)
        return AutoConfig.from_pretrained(name, **arguments)
    except OSError as error:
        raise DataError(f"model.source={model.source} cannot be loaded: {error}") from error


def _steps(config: Config, stage: ColdStartConfig) -> str:
    sources = training_tables(config, stage)
    missing = [uri for uri in sources if "://" not in uri and not Path(uri).exists()]
    if missing:
        return f"steps unknown: {missing[0]} does not exist yet"
    rows = sum(open_table(uri, schema).count_rows() for uri, schema in sources.items())
    epoch = EpochRows(rows)
    if stage.rows_per_query is not None:
        texts = (batch["query"].to_pylist() for uri in sources for batch in read_batches(uri, QUERIES))
        keys = np.fromiter((query_identity(text) for part in texts for text in part), np.int64, rows)
        epoch = EpochRows.of(keys, stage.rows_per_query)
    steps = steps_per_epoch(epoch, stage.workers, stage.batch_size) * stage.total_epochs
    visited = f", {epoch.total} of them in an epoch" if epoch.total < rows else ""
    size = f"{stage.workers} workers x {stage.batch_size} rows"
    return f"rows {rows}{visited}, epochs {stage.total_epochs}, steps {steps} ({size})"


def _largest_load(config: Config, stage: ColdStartConfig) -> StepSize:
    """Return the load of a step whose sequences all have full length; a chat template's fixed words come on top."""
    limits = override_limits(COMPACT, config.model)
    completion = limits.budget + 3
    query, item = limits.max_query_tokens + completion, limits.max_item_tokens
    with_empty = stage.objective == "joint" and stage.empty_weight > 0
    step_tokens = stage.batch_size * (query + item + with_empty * (limits.max_query_tokens + 3))
    kept = step_tokens if stage.graph_tokens is None else min(step_tokens, max(stage.graph_tokens, stage.chunk_tokens))
    scored = min(stage.batch_size, stage.chunk_tokens // query) * completion if stage.objective == "joint" else 0
    return StepSize(kept, scored)
