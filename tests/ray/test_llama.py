"""A pretrained Llama through every stage: frozen layers, autocast, vLLM rollouts, weight syncs, export, serving."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM

from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.template import COMPACT_WORDS

FROZEN = 1  # of three layers
STAGES = ("cold_start", "direct", "reinforce")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def run(llama_source: Path, tmp_path_factory: pytest.TempPathFactory, new_port: Callable[[], int]) -> Path:
    """A finished demo that began with the tiny Llama."""
    folder = tmp_path_factory.mktemp("run") / "llama"
    settings = [f"run_dir={folder}", f"serve.port={new_port()}", f"model.source={llama_source}"]
    settings += ["model.template=compact", *(f"{stage}.freeze_layers={FROZEN}" for stage in STAGES)]
    settings += ["cold_start.autocast=always", "direct.autocast=always", "ray.start_timeout_s=600"]
    command = [sys.executable, "-m", "ray_apps.cli.main", "demo", "--config", "configs/tiny.yaml", *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1000, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder


def log_lines(run: Path, stage: str, field: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / f"logs/{stage}.jsonl").read_text().splitlines()]
    return [line for line in lines if field in line]


def test_the_weights_are_those_of_a_llama_whose_upper_layers_moved(run: Path, llama_source: Path) -> None:
    source = AutoModelForCausalLM.from_pretrained(llama_source)
    trained = AutoModelForCausalLM.from_pretrained(run / "model")
    assert trained.config.model_type == "llama"
    before, after = source.state_dict(), trained.state_dict()
    for name, tensor in before.items():
        if "layers" in name:
            same = np.array_equal(tensor.numpy(), after[name].numpy())
            assert same == name.startswith("model.layers.0."), name
    assert after["lm_head.weight"].data_ptr() == after["model.embed_tokens.weight"].data_ptr()


def test_training_lowers_the_losses(run: Path) -> None:
    for name in ("sft", "info_nce"):
        values = [line[name] for line in log_lines(run, "cold_start", name)]
        assert np.mean(values[-3:]) < np.mean(values[:3])


def test_the_engines_sample_from_the_trained_policy(run: Path) -> None:
    steps = log_lines(run, "reinforce", "mismatch_kl")
    assert len(steps) == 3
    for step in steps:
        assert abs(step["mismatch_kl"]) < 1e-4


def test_the_service_answered(run: Path) -> None:
    examples = json.loads((run / "report.json").read_text())["examples"]
    assert [len(example["lrem"]) for example in examples] == [5, 5, 5]


def test_sentence_transformers_embeds_the_same(run: Path) -> None:
    ours = ReasoningEmbedder.load(run / "model").eval()
    assert ours.template.query_prefix == f"<s>{COMPACT_WORDS.query_prefix}"
    theirs = SentenceTransformer(str(run / "model"), device="cpu")
    titles = ["red wool coat", "blue silk hat"]
    assert np.abs(ours.encode_items(titles) - theirs.encode(titles)).max() < 1e-5
