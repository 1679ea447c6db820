"""Chunks, kept graphs and replayed random states against one plain forward and backward, in one process."""

import numpy as np
import pytest
import torch

from lrem.config import ColdStartConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad
from lrem.training.cold_start_step import ColdStartBatch, accumulate_gradients
from lrem.training.gradient_observer import GradNormObserver
from lrem.training.losses import info_nce, sft
from tests.unit.training.cold_start_batch import make_batch, plain_gradient
from tests.unit.training.gradients import gradient_of, relative_error

CPU = torch.device("cpu")


def chunked_gradient(
    model: ReasoningEmbedder,
    batch: ColdStartBatch,
    settings: ColdStartConfig,
    observer: GradNormObserver | None = None,
) -> tuple[torch.Tensor, list[bool], dict[str, float]]:
    """Return the gradient, the `last` flag of each backward, and the losses."""
    model.zero_grad()
    flags: list[bool] = []

    def backward(loss: torch.Tensor, last: bool) -> None:
        flags.append(last)
        loss.backward()

    values = accumulate_gradients(batch, settings, model, backward, CPU, observer)
    return gradient_of(model), flags, values


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 0.3)], ids=["info_nce", "sft", "both"])
@pytest.mark.parametrize(
    ("chunk_tokens", "graph_tokens"),
    [(10**6, None), (40, None), (40, 1), (40, 90), (1, 1)],
    ids=["whole", "bucketed", "cached", "partly-cached", "row-by-row"],
)
def test_chunked_is_plain(
    embedder: ReasoningEmbedder, weights: tuple[float, float], chunk_tokens: int, graph_tokens: int | None
) -> None:
    settings = ColdStartConfig(
        info_nce_weight=weights[0],
        sft_weight=weights[1],
        temperature=0.05,
        chunk_tokens=chunk_tokens,
        graph_tokens=graph_tokens,
    )
    batch = make_batch(embedder, without_thought=True)
    expected = plain_gradient(embedder, batch, settings)
    gradient, flags, _ = chunked_gradient(embedder, batch, settings)
    assert relative_error(gradient, expected) < 1e-5
    assert expected.norm() > 0.1
    assert flags == [False] * (len(flags) - 1) + [True]  # the boundary, once and at the end
    rows = len(batch.query_side) + len(batch.items)
    assert graph_tokens is not None or len(flags) == 1  # kept graphs share one backward
    assert chunk_tokens > 1 or len(flags) == rows


def test_matryoshka_is_the_mean_over_dimensions(tiny: ReasoningEmbedder) -> None:
    settings = ColdStartConfig(matryoshka=[32, 8], chunk_tokens=40, graph_tokens=1, temperature=0.05)
    batch = make_batch(tiny, without_thought=True)
    expected = plain_gradient(tiny, batch, settings)
    assert relative_error(chunked_gradient(tiny, batch, settings)[0], expected) < 1e-5


def test_dropout_is_replayed(tiny_folder: object) -> None:
    """With dropout, the second forward of a chunk sees the masks of its first: cached equals kept."""
    model = ReasoningEmbedder.load(str(tiny_folder))
    for layer in model.lm.model.layers:
        layer.self_attn.attention_dropout = 0.3
    model.train()
    batch = make_batch(model)
    gradients, next_draws = [], []
    for graph_tokens in (None, 1):
        torch.manual_seed(4)
        settings = ColdStartConfig(chunk_tokens=40, graph_tokens=graph_tokens)
        gradients.append(chunked_gradient(model, batch, settings)[0])
        next_draws.append(torch.rand(1).item())
    assert relative_error(gradients[1], gradients[0]) < 1e-5
    assert next_draws[0] == next_draws[1]  # the generator continues as if nothing had run twice
    torch.manual_seed(5)
    other = chunked_gradient(model, batch, ColdStartConfig(chunk_tokens=40))[0]
    assert relative_error(other, gradients[0]) > 1e-3  # dropout has an effect here


def test_losses_and_their_gradient_norms_are_reported(tiny: ReasoningEmbedder) -> None:
    settings = ColdStartConfig(info_nce_weight=0.5, sft_weight=0.25, chunk_tokens=40, graph_tokens=1)
    batch, observer = make_batch(tiny), GradNormObserver()
    values = chunked_gradient(tiny, batch, settings, observer)[2]
    with torch.no_grad():
        queries = pad(batch.queries, batch.scored_spans)
        encoded, items = tiny(queries), tiny.embed(pad(batch.items))
        keys, known = torch.tensor(batch.item_keys), torch.from_numpy(batch.known)
        expected = info_nce(encoded.embeddings, items, torch.arange(7), keys, known, settings.temperature)
        assert values["info_nce"] == pytest.approx(expected.item(), rel=1e-5)
        assert values["sft"] == pytest.approx(sft(encoded.log_probs, queries.scored).item(), rel=1e-5)
    norms = observer.norms(CPU)
    for name, weight in (("info_nce", {"sft_weight": 0.0}), ("sft", {"info_nce_weight": 0.0})):
        expected_norm = state_norm(tiny, batch, settings.model_copy(update=weight))
        assert norms[f"grad_norm_{name}"] == pytest.approx(expected_norm, rel=1e-4)


def state_norm(model: ReasoningEmbedder, batch: ColdStartBatch, settings: ColdStartConfig) -> float:
    """Return the norm of the loss's gradient at the last layer's output, by a hook on the backbone itself."""
    squares: list[float] = []

    def hook(module: object, inputs: object, output: object) -> None:
        state = output.last_hidden_state  # type: ignore[attr-defined]
        state.register_hook(lambda gradient: squares.append(gradient.square().sum().item()))

    handle = model.lm.base_model.register_forward_hook(hook)
    plain_gradient(model, batch, settings)
    handle.remove()
    return float(np.sqrt(sum(squares)))
