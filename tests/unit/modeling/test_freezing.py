"""Frozen layers: they do not move and cost no backward, the control tokens' rows move, a state dict is ordinary."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lrem.config import ColdStartConfig
from lrem.errors import ConfigError
from lrem.modeling.freezing import freeze_lower_layers
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad
from lrem.training.cold_start_step import accumulate_gradients
from tests.unit.training.cold_start_batch import make_batch

LAYERS = 1
CPU = torch.device("cpu")
Rows = list[int]


def untie(model: ReasoningEmbedder) -> None:
    """Give the head a table of its own."""
    model.lm.config.tie_word_embeddings = False
    model.lm.lm_head.weight = torch.nn.Parameter(model.lm.lm_head.weight.detach() * 1.5)


def load(folder: Path, tied: bool = True) -> tuple[ReasoningEmbedder, Rows]:
    """Return a frozen model, and the ids of its control tokens."""
    model = ReasoningEmbedder.load(folder)
    if not tied:
        untie(model)
    freeze_lower_layers(model, LAYERS)
    return model, [model.renderer.think, model.renderer.close, model.renderer.emb]


def train(model: ReasoningEmbedder, steps: int = 2, sft_weight: float = 1.0) -> None:
    settings = ColdStartConfig(chunk_tokens=40, graph_tokens=1, temperature=0.05, sft_weight=sft_weight)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.01)
    for _ in range(steps):
        accumulate_gradients(make_batch(model), settings, model, lambda loss, last: loss.backward(), CPU)
        optimizer.step()
        optimizer.zero_grad()


def test_without_a_loss_at_the_head_the_rows_are_frozen(embedder_folder: Path) -> None:
    """As for the direct baseline: no trained parameter is left without a gradient."""
    model = ReasoningEmbedder.load(embedder_folder)
    freeze_lower_layers(model, LAYERS, train_rows=False)
    before = model.lm.state_dict()["model.embed_tokens.weight"].clone()
    batch = make_batch(model)._replace(scored_spans=None)
    accumulate_gradients(batch, ColdStartConfig(), model, lambda loss, last: loss.backward(), CPU)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any("embed_tokens" in name or "lm_head" in name for name in trained)
    assert torch.equal(model.lm.state_dict()["model.embed_tokens.weight"], before)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_step_moves_what_is_trained_and_nothing_else(embedder_folder: Path, tied: bool) -> None:
    model, rows = load(embedder_folder, tied)
    before = {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}
    train(model)
    after = model.lm.state_dict()
    tables = {"lm_head.weight", "model.embed_tokens.weight"} if tied else {"lm_head.weight"}
    for name, tensor in after.items():
        moved = (tensor != before[name]).nonzero()
        if name in tables:
            assert {*moved[:, 0].tolist()} == {*rows}, name
        elif name == "model.embed_tokens.weight" or name.startswith("model.layers.0."):
            assert not len(moved), name
        else:
            assert len(moved), name
    assert torch.equal(after["model.embed_tokens.weight"], after["lm_head.weight"]) == tied


def test_frozen_layers_get_no_gradient_and_keep_no_graph(embedder_folder: Path) -> None:
    model, _ = load(embedder_folder)
    outputs: list[torch.Tensor] = []
    for layer in model.lm.base_model.layers:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    batch = make_batch(model)
    model(pad(batch.queries, batch.scored_spans)).embeddings.sum().backward()
    assert [output.requires_grad for output in outputs] == [False] * LAYERS + [True] * (len(outputs) - LAYERS)
    gradients = {name for name, p in model.lm.named_parameters() if p.grad is not None}
    assert not any(name.startswith(("model.layers.0.", "model.embed_tokens.weight")) for name in gradients)


def test_gradient_checkpointing_changes_nothing_and_keeps_frozen_layers_free(embedder_folder: Path) -> None:
    states = []
    for checkpointing in (False, True):
        model, _ = load(embedder_folder)
        if checkpointing:
            model.lm.gradient_checkpointing_enable({"use_reentrant": False})
            model.lm.disable_input_require_grads()
        model.train()
        calls: list[int] = []
        model.lm.base_model.layers[0].mlp.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        train(model, steps=1)
        states.append((model.lm.state_dict(), len(calls)))
    (plain, forwards), (recomputed, again) = states
    assert forwards == again  # a frozen layer is not run a second time
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-6) for name in plain)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_saved_folder_behaves_as_trained(embedder_folder: Path, tmp_path: Path, tied: bool) -> None:
    """The names of an ordinary model, the rows in its table at both ends, and no trace of ours."""
    model, _ = load(embedder_folder, tied)
    train(model)
    model.save(tmp_path / "model")
    loaded = ReasoningEmbedder.load(tmp_path / "model")
    assert loaded.lm.state_dict().keys() == AutoModelForCausalLM.from_pretrained(embedder_folder).state_dict().keys()
    batch = make_batch(model)
    with torch.no_grad():
        trained = model.eval()(pad(batch.queries, batch.scored_spans))
        ordinary = loaded(pad(batch.queries, batch.scored_spans))
    assert torch.allclose(trained.embeddings, ordinary.embeddings, atol=1e-6)
    assert torch.allclose(trained.log_probs, ordinary.log_probs, atol=1e-5)
    assert model.reason(["red coat"]) == loaded.reason(["red coat"])


def test_an_ordinary_state_can_be_loaded(embedder_folder: Path) -> None:
    """As a checkpoint is when a run resumes, from under another prefix."""
    model, rows = load(embedder_folder)
    train(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any("control" in name for name in state)
    fresh, _ = load(embedder_folder)
    fresh.load_state_dict(state)
    assert torch.equal(fresh.lm.lm_head.control_rows, model.lm.lm_head.control_rows)
    assert torch.equal(fresh.lm.state_dict()["lm_head.weight"], state["lm.lm_head.weight"])
    assert fresh.lm.lm_head.control_rows is fresh.lm.model.embed_tokens.control_rows
    assert rows


def test_the_rows_gradient_is_that_of_the_head(embedder_folder: Path) -> None:
    """Equal to the gradient of a whole model whose input embeddings are held constant."""
    frozen, rows = load(embedder_folder)
    whole = ReasoningEmbedder.load(embedder_folder)
    whole.lm.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.detach())
    gradients = []
    for model in (frozen, whole):
        batch = make_batch(model)
        model(pad(batch.queries, batch.scored_spans)).log_probs.sum().backward()
        gradients.append(model.lm.lm_head)
    assert torch.allclose(gradients[0].control_rows.grad, gradients[1].weight.grad[rows], atol=1e-4)
    assert gradients[0].weight.grad is None


def test_no_layer_would_be_left(embedder_folder: Path) -> None:
    model = ReasoningEmbedder.load(embedder_folder)
    count = model.lm.config.num_hidden_layers
    with pytest.raises(ConfigError, match=f"the model has {count} layers"):
        freeze_lower_layers(model, count)


def test_adapters_and_frozen_layers_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="freeze_layers and lora.rank"):
        ColdStartConfig.model_validate({"freeze_layers": 2, "lora": {"rank": 4}})
