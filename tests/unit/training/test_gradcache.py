"""Chunks, kept graphs and random replays against one plain forward and backward, in one process."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrem.config import ColdStartConfig
from lrem.data.known_positives import KnownPositives
from lrem.modeling.model import ReasoningEmbedder, pad
from lrem.training.batching import chunk_by_length, epoch_order, step_rows, steps_per_epoch
from lrem.training.cold_start_step import ColdStartBatch, accumulate_gradients, collate, state_gradient_norms
from lrem.training.losses import info_nce, sft, truncate

CPU = torch.device("cpu")
QUERIES = ["red coat", "a warm hat for long walks", "scarf", "blue", "silk shirt for summer", "coat", "green linen hat"]
REASONINGS = ["wool, winter", "wool", "", "shirt, scarf, hat", "linen", "", "winter, coat"]
TITLES = ["red wool coat", "wool hat", "silk scarf", "blue linen shirt", "silk shirt", "black coat", "green linen hat"]


def make_rows(model: ReasoningEmbedder) -> list[dict[str, object]]:
    """Seven rendered rows; 0 and 5 share their item, 3 has two hard negatives."""
    renderer, rows = model.renderer, []
    for i, (query, reasoning, title) in enumerate(zip(QUERIES, REASONINGS, TITLES, strict=True)):
        hard = [renderer.item("black wool scarf"), renderer.item("green tea")] if i == 3 else []
        rows.append(
            {
                "query_ids": renderer.query(query, reasoning),
                "start": len(renderer.query_prompt(query)),
                "item_ids": renderer.item(title),
                "query_key": i,
                "item_key": i % 5,
                "negative_ids": hard,
                "negative_keys": [70 + j for j in range(len(hard))],
            }
        )
    return rows


def make_batch(model: ReasoningEmbedder) -> ColdStartBatch:
    known = KnownPositives(np.array([0, 1, 2, 3, 4, 5, 6, 6]), np.array([0, 1, 2, 3, 4, 0, 1, 3]))
    return collate(make_rows(model), known)


def plain_gradient(model: ReasoningEmbedder, batch: ColdStartBatch, settings: ColdStartConfig) -> torch.Tensor:
    """One forward a side, one backward of the joint loss: the definition, without any of our machinery."""
    model.zero_grad()
    encoded, items = model(pad(batch.queries, batch.scored)), model.embed(pad(batch.items))
    scored = pad(batch.queries, batch.scored).scored
    keys, known = torch.tensor(batch.item_keys), torch.from_numpy(batch.known)
    terms = []
    for d in (model.dimension, *settings.matryoshka):
        pair = truncate(encoded.embeddings, d), truncate(items, d)
        terms.append(info_nce(*pair, torch.arange(len(batch.queries)), keys, known, settings.temperature))
    assert encoded.log_probs is not None
    assert scored is not None
    loss = settings.info_nce_weight * sum(terms) / len(terms) + settings.sft_weight * sft(encoded.log_probs, scored)
    loss.backward()
    return gradient_of(model)


def gradient_of(model: ReasoningEmbedder) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


def chunked_gradient(
    model: ReasoningEmbedder, batch: ColdStartBatch, settings: ColdStartConfig
) -> tuple[torch.Tensor, list[bool], dict[str, float]]:
    model.zero_grad()
    lasts: list[bool] = []

    def backward(loss: torch.Tensor, last: bool) -> None:
        lasts.append(last)
        loss.backward()

    values = accumulate_gradients(batch, settings, model, backward, CPU)
    return gradient_of(model), lasts, values


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("terms", [(1.0, 0.0), (0.0, 1.0), (1.0, 0.3)], ids=["info_nce", "sft", "both"])
@pytest.mark.parametrize(
    ("chunk_tokens", "graph_tokens"),
    [(10**6, None), (40, None), (40, 1), (40, 90), (1, 1)],
    ids=["whole", "bucketed", "cached", "partly-cached", "row-by-row"],
)
def test_chunked_is_plain(
    tiny: ReasoningEmbedder, terms: tuple[float, float], chunk_tokens: int, graph_tokens: int | None
) -> None:
    settings = ColdStartConfig(
        info_nce_weight=terms[0],
        sft_weight=terms[1],
        temperature=0.05,
        chunk_tokens=chunk_tokens,
        graph_tokens=graph_tokens,
    )
    batch = make_batch(tiny)
    expected = plain_gradient(tiny, batch, settings)
    got, lasts, _ = chunked_gradient(tiny, batch, settings)
    assert relative(got, expected) < 1e-5
    assert expected.norm() > 0.1
    assert lasts == [False] * (len(lasts) - 1) + [True]  # the boundary, once and at the end
    rows = len(batch.queries) + len(batch.items)
    assert graph_tokens is not None or len(lasts) == 1  # what is kept goes back at once
    assert chunk_tokens > 1 or len(lasts) == rows


def test_matryoshka_is_the_mean_over_dimensions(tiny: ReasoningEmbedder) -> None:
    settings = ColdStartConfig(matryoshka=[32, 8], chunk_tokens=40, graph_tokens=1, temperature=0.05)
    batch = make_batch(tiny)
    assert relative(chunked_gradient(tiny, batch, settings)[0], plain_gradient(tiny, batch, settings)) < 1e-5


def test_dropout_is_replayed(tiny_folder: object) -> None:
    """With dropout on, the second forward of a chunk sees the masks of its first: cached equals kept."""
    model = ReasoningEmbedder.load(str(tiny_folder))
    for layer in model.lm.model.layers:
        layer.self_attn.attention_dropout = 0.3
    model.train()
    batch = make_batch(model)
    gradients, after = [], []
    for graph_tokens in (None, 1):
        torch.manual_seed(4)
        settings = ColdStartConfig(chunk_tokens=40, graph_tokens=graph_tokens)
        gradients.append(chunked_gradient(model, batch, settings)[0])
        after.append(torch.rand(1).item())
    assert relative(gradients[1], gradients[0]) < 1e-5
    assert after[0] == after[1]  # and the generator goes on as if nothing was run twice
    torch.manual_seed(5)
    other = chunked_gradient(model, batch, ColdStartConfig(chunk_tokens=40))[0]
    assert relative(other, gradients[0]) > 1e-3  # dropout does something here


def test_the_losses_are_reported(tiny: ReasoningEmbedder) -> None:
    settings = ColdStartConfig(info_nce_weight=0.5, sft_weight=0.25, chunk_tokens=40, graph_tokens=1)
    batch = make_batch(tiny)
    tiny.state_gradients.clear()
    values = chunked_gradient(tiny, batch, settings)[2]
    norms = state_gradient_norms(tiny.state_gradients, CPU)
    with torch.no_grad():
        queries = pad(batch.queries, batch.scored)
        encoded, items = tiny(queries), tiny.embed(pad(batch.items))
        keys, known = torch.tensor(batch.item_keys), torch.from_numpy(batch.known)
        expected = info_nce(encoded.embeddings, items, torch.arange(7), keys, known, settings.temperature)
        assert values["info_nce"] == pytest.approx(expected.item(), rel=1e-5)
        assert values["sft"] == pytest.approx(sft(encoded.log_probs, queries.scored).item(), rel=1e-5)
    assert tiny.state_gradients == {}
    for name, term in (("info_nce", {"sft_weight": 0.0}), ("sft", {"info_nce_weight": 0.0})):
        expected_norm = state_norm(tiny, batch, settings.model_copy(update=term))
        assert norms[f"grad_norm_{name}"] == pytest.approx(expected_norm, rel=1e-4)


def state_norm(model: ReasoningEmbedder, batch: ColdStartBatch, settings: ColdStartConfig) -> float:
    """Norm of the loss's gradient at the output of the last layer, by a hook on the backbone itself."""
    squares: list[float] = []

    def hook(module: object, inputs: object, output: object) -> None:
        state = output.last_hidden_state  # type: ignore[attr-defined]
        state.register_hook(lambda gradient: squares.append(gradient.square().sum().item()))

    handle = model.lm.base_model.register_forward_hook(hook)
    plain_gradient(model, batch, settings)
    handle.remove()
    return float(np.sqrt(sum(squares)))


def test_thought_dropout_embeds_without_reasoning_and_imitates_nothing(tiny: ReasoningEmbedder) -> None:
    rows = make_rows(tiny)
    known = KnownPositives(np.arange(7), np.arange(7))
    batch = collate(rows, known, thought_dropout=0.5, random=np.random.default_rng(1))
    assert batch.scored is not None
    dropped = [start == end for start, end in batch.scored]
    assert 0 < sum(dropped) < 7
    for i, gone in enumerate(dropped):
        reasoning = "" if gone else REASONINGS[i]
        assert batch.queries[i] == tiny.renderer.query(QUERIES[i], reasoning)
    again = collate(rows, known, thought_dropout=0.5, random=np.random.default_rng(1))
    assert again.queries == batch.queries


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 200), st.integers(1, 50))
def test_chunks_hold_every_row_once(lengths: list[int], tokens: int, at_least: int) -> None:
    groups = chunk_by_length(lengths, tokens, at_least)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens for group in groups)
    assert len(groups) >= min(at_least, len(lengths))


@given(st.integers(2, 60), st.integers(1, 5), st.integers(2, 9), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_and_ranks_step_alike(rows: int, workers: int, batch: int, epoch: int) -> None:
    workers = min(workers, rows // 2)
    steps = steps_per_epoch(rows, workers, batch)
    for rank in range(workers):
        mine = rows * (rank + 1) // workers - rows * rank // workers
        order = epoch_order(mine, 3, epoch, rank)
        parts = [step_rows(order, steps, step) for step in range(steps)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(mine))
        assert all(1 <= len(part) <= batch for part in parts)
