"""Variants of stage 1: adapters, bf16, gradient checkpointing, Matryoshka dimensions, ZeRO-3."""

import json
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from lrem.config import load_config
from lrem.modeling.model import ReasoningEmbedder
from ray_apps.cluster.session import cluster
from ray_apps.rollouts.client import start_pool
from ray_apps.training import cold_start
from tests.ray.rollouts.policies import assert_same_policy
from tests.ray.training.cold_start_runs import ROUNDING, SETTINGS, assert_same_curve, loss_curve, write_data

TEACHER = ["cold_start.thoughts={teacher: 1, own: 0, corrupted: 0}", "cold_start.empty_weight=0"]  # as in the paper
CACHED = ["cold_start.chunk_tokens=64", "cold_start.graph_tokens=64"]
LORA = ["cold_start.lora.rank=4", "cold_start.lora.alpha=8", "cold_start.optim.lr=1e-2"]
FROZEN = ["cold_start.freeze_layers=1", "cold_start.optim.lr=1e-2"]
VARIANTS = {
    "lora": LORA,
    "paper": TEACHER,
    "bf16": ["cold_start.optim.bf16=true", "cold_start.optim.zero_stage=1"],
    "checkpointing": ["cold_start.gradient_checkpointing=true", *CACHED],
    "matryoshka": ["cold_start.matryoshka=[32, 16]", "cold_start.sft_epochs=1"],
    "zero-3": ["cold_start.optim.zero_stage=3", *CACHED],
    "lora-zero-3": [*LORA, "cold_start.optim.zero_stage=3"],
    "frozen": FROZEN,
    "frozen-checkpointing": [*FROZEN, "cold_start.gradient_checkpointing=true"],
    "frozen-zero-3": [*FROZEN, "cold_start.optim.zero_stage=3"],
    "compile": ["cold_start.compile=true"],
    "frozen-compile-checkpointing": [*FROZEN, "cold_start.compile=true", "cold_start.gradient_checkpointing=true"],
    "lora-compile": [*LORA, "cold_start.compile=true"],
    "autocast": ["cold_start.autocast=always", "cold_start.optim.zero_stage=1"],
}


def assert_only_upper_layers_moved(start: ReasoningEmbedder, trained: ReasoningEmbedder) -> None:
    before, after, renderer = start.lm.state_dict(), trained.lm.state_dict(), start.renderer
    assert before.keys() == after.keys()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert not {name for name in moved if name.startswith("model.layers.0.")}
    assert {name for name in after if name.startswith("model.layers.1.")} <= moved
    rows = (after["lm_head.weight"] != before["lm_head.weight"]).any(1).nonzero()[:, 0].tolist()
    assert {*rows} == {renderer.think, renderer.close, renderer.emb}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_and_load(reference_run: Path, tmp_path: Path, variant: str) -> None:
    write_data(tmp_path)
    config = load_config(None, [*SETTINGS, f"run_dir={tmp_path}", *VARIANTS[variant]])
    folder = config.path("cold_start")
    with cluster(config):
        cold_start.run(config, config.cold_start, folder)
        if variant in ("zero-3", "frozen-zero-3"):  # vLLM loads what ZeRO gathered
            pool = start_pool(folder, config)
            [engine] = ray.get(pool.actors.remote(), timeout=60)
            assert_same_policy(engine, ReasoningEmbedder.load(folder))
    curve = loss_curve(tmp_path)
    assert curve[-1][1] < curve[0][1]
    assert curve[-1][2] < curve[0][2]
    model = ReasoningEmbedder.load(folder)
    start_model = cold_start.initial_model(config, config.cold_start)
    titles = ["red coat number 1", "blue hat number 7"]
    assert np.abs(model.encode_items(titles) - start_model.encode_items(titles)).max() > 1e-3
    if variant.startswith("frozen"):
        assert_only_upper_layers_moved(start_model, model)
    if variant == "bf16":
        assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(folder).parameters()} == {torch.bfloat16}
    if variant.startswith("lora"):
        import peft

        wrapped = peft.PeftModel.from_pretrained(start_model.lm, str(folder / "adapter"))
        start_model.lm = wrapped.merge_and_unload()
        assert np.abs(model.encode_items(titles) - start_model.encode_items(titles)).max() < 1e-5
    if variant == "matryoshka":
        assert model.template.matryoshka == (32, 16)
        assert json.loads((folder / "config.json").read_text())["matryoshka_dimensions"] == [32, 16, 64]
    if variant in ("checkpointing", "zero-3", "compile"):  # the same numbers by another computation
        assert_same_curve(tmp_path, reference_run, ROUNDING)
