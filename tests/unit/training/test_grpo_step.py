"""A step of stage 2 against its definition: plain forwards, one loss, one backward; chunked; on two ranks; any ZeRO."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lrem.config import ReinforceConfig
from lrem.data.known_positives import KnownPositives
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad
from lrem.training.grpo_step import Candidates, GrpoBatch, accumulate_gradients, collate
from lrem.training.losses import info_nce
from lrem.training.policy_loss import Clip, group_advantage, kl_to_reference, policy_gradient, token_weights
from lrem.training.rewards import RolloutOutcome, combine_rewards, rank_targets
from lrem.training.rollout import Rollout
from tests.unit.training.test_deepspeed import full_gradient
from tests.unit.training.test_gradcache import gradient_of

CPU = torch.device("cpu")
TEMPERATURE, G = 0.8, 3
QUERIES = ["red coat", "a warm hat", "scarf", "blue silk shirt for summer", "coat"]
TITLES = ["red wool coat", "wool hat", "silk scarf", "blue silk shirt", "black coat"]
KNOWN = KnownPositives(np.array([0, 1, 2, 3, 4, 4]), np.array([0, 1, 2, 3, 4, 0]))
SHARES = [[0, 1], [2, 3, 4]]
WAYS: dict[str, dict[str, Any]] = {
    "paper": {"ratio": "sequence", "aggregate": "sequence"},
    "token": {},
    "drop": {"zero_variance": "drop", "advantage": "leave_one_out", "aggregate": "constant"},
    "kl": {"kl_weight": 0.3, "correction": "token", "correction_cap": 1.01},
}
CHUNKS = {"whole": (10**6, None), "cached": (60, 1), "row by row": (1, 40)}


def settings(way: str, chunks: str = "whole", **more: Any) -> ReinforceConfig:
    tokens, graphs = CHUNKS[chunks]
    given = {"chunk_tokens": tokens, "graph_tokens": graphs, "temperature": 0.05, "group_size": G, **more}
    return ReinforceConfig.model_validate(given | WAYS[way])


def rollouts_of(model: ReasoningEmbedder, query: int) -> list[Rollout]:
    """Three samples of a query; of query 2 all alike, of query 3 one malformed, of query 1 one over the budget."""
    renderer, random = model.renderer, np.random.default_rng(query)
    texts = ["", "", ""] if query == 2 else ["wool, winter", "linen", "coat, hat"]
    ids = [renderer.completion(renderer.reasoning_ids(text)) for text in texts]
    if query == 3:
        ids[1] = ids[1][1:-1]
    if query == 1:
        ids[2] = [renderer.think, *renderer.text_ids("wool hat " * 20)[:20], renderer.close, renderer.emb]
    return [Rollout(tokens, (-3 + random.random(len(tokens))).tolist(), 4) for tokens in ids]


def make(model: ReasoningEmbedder, chosen: list[int]) -> GrpoBatch:
    rows = [
        {
            "query": QUERIES[i],
            "title": TITLES[i],
            "query_key": i,
            "item_key": i,
            "negative_titles": [],
            "negative_keys": [],
        }
        for i in chosen
    ]
    if 3 in chosen:
        rows[chosen.index(3)] |= {"negative_titles": ["green linen shirt"], "negative_keys": [9]}
    return collate(rows, [rollouts_of(model, i) for i in chosen], model.renderer, KNOWN)


def extra(model: ReasoningEmbedder) -> Candidates:
    with torch.no_grad():
        found = model.embed(pad([model.renderer.item(title) for title in ("green scarf", "black hat", "wool hat")]))
    return Candidates(found, torch.tensor([20, 21, 1]))


def reference_of(folder: Path | str) -> ReasoningEmbedder:
    other = ReasoningEmbedder.load(folder)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.02)
    return other


def plain(model: ReasoningEmbedder, reference: ReasoningEmbedder, way: str) -> dict[str, float]:
    """The definition on the whole batch, each completion a row of its own; leaves the gradient in the model."""
    rl, batch = settings(way), make(model, [0, 1, 2, 3, 4])
    rows = [g.prompt + c for g in batch.groups for c in g.completions]
    spans = [(len(g.prompt), len(g.prompt) + n) for g in batch.groups for n in g.sampled]
    padded = pad(rows, spans)

    def aligned(log_probs: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(batch.old)
        parts = [log_probs[i, start:end] for i, (start, end) in enumerate(spans)]
        for i, part in enumerate(parts):
            out = out.index_put((torch.full((len(part),), i), torch.arange(len(part))), part)
        return out

    encoded, items = model(padded, TEMPERATURE), model.embed(pad(batch.items))
    log_probs = aligned(encoded.log_probs)
    owner = torch.arange(5).repeat_interleave(G)
    more = extra(model)
    vectors, keys = torch.cat([items.detach(), more.embeddings]), torch.cat([batch.item_keys, more.keys])
    ranking = rank_targets(encoded.embeddings.detach(), batch.item_keys[:5][owner], vectors, keys, batch.known[owner])
    lengths = torch.tensor([len(read.reasoning) for read in batch.parsed])
    formed = torch.tensor([read.well_formed for read in batch.parsed])
    outcome = RolloutOutcome([batch.queries[i] for i in owner], batch.reasonings, formed, lengths, 16, ranking)
    rewards, _ = combine_rewards(outcome, {"format": 0.5, "length": 0.2, "accuracy": 1.0})
    advantages = group_advantage(rewards.view(5, G), rl.advantage).flatten()
    counted = batch.sampled.clone()
    if rl.zero_variance == "drop":
        alike = [q for q in range(5) if len(set(rewards[q * G : (q + 1) * G].tolist())) == 1]
        assert 2 in alike
        assert len(alike) < 5
        counted[[q * G + i for q in alike for i in range(G)]] = False
    weights = token_weights(counted, rl.aggregate, 24)
    if rl.correction == "token":
        pulled = (log_probs.detach() - batch.old).exp().clamp(max=rl.correction_cap)
        policy = policy_gradient(log_probs, log_probs.detach(), advantages, weights * pulled)
    else:
        policy = policy_gradient(log_probs, batch.old, advantages, weights, Clip(rl.ratio, 0.2, 0.2))
    contrast = info_nce(encoded.embeddings, items, owner, batch.item_keys, batch.known[owner], 0.05)
    loss = policy + 0.1 * contrast
    if rl.kl_weight:
        with torch.no_grad():
            given = aligned(reference(padded, TEMPERATURE).log_probs)
        loss = loss + rl.kl_weight * kl_to_reference(log_probs, given, weights)
    model.zero_grad()
    loss.backward()
    return {"policy": policy.item(), "info_nce": contrast.item(), "reward": rewards.mean().item()}


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_its_definition(tiny_folder: Path, way: str, chunks: str) -> None:
    model, reference = ReasoningEmbedder.load(tiny_folder), reference_of(tiny_folder)
    expected = plain(model, reference, way)
    gradient = gradient_of(model)
    model.zero_grad()
    found = accumulate_gradients(
        make(model, [0, 1, 2, 3, 4]),
        settings(way, chunks),
        16,
        24,
        lambda sequences: model(sequences, TEMPERATURE),
        lambda loss, last: loss.backward(),
        CPU,
        extra(model),
        (lambda sequences: reference(sequences, TEMPERATURE)) if way == "kl" else None,
    )
    assert found.values == pytest.approx(found.values | expected, rel=1e-4)
    assert gradient.norm() > 0.01
    assert ((gradient_of(model) - gradient).norm() / gradient.norm()).item() < 1e-5


def test_malformed_and_overlong_rollouts(tiny_folder: Path) -> None:
    """Malformed: nothing, whatever it retrieves, and a forced close that is not scored. Overlong: no length reward."""
    model = ReasoningEmbedder.load(tiny_folder)
    batch = make(model, [1, 3])
    renderer, malformed = model.renderer, batch.groups[1].completions[1]
    assert malformed[-2:] == [renderer.close, renderer.emb]
    assert batch.groups[1].sampled[1] == len(malformed) - 2 == int(batch.sampled[G + 1].sum())
    found = accumulate_gradients(
        batch, settings("token"), 16, 24, model, lambda loss, last: loss.backward(), CPU, extra(model)
    )
    assert found.rewards[G + 1].item() == 0
    assert {name: part[G + 1].item() for name, part in found.parts.items()} == {"format": 0, "length": 0, "accuracy": 0}
    assert (found.parts["format"][2].item(), found.parts["length"][2].item()) == (1, 0)
    assert found.parts["accuracy"][2].item() > 0 or found.ranks[2] == found.values["candidates"]
    assert found.values["format_rate"] == pytest.approx(5 / 6)


def run_rank(number: int, zero_stage: int, start: str, folder: str) -> None:
    """This rank's share of every way and chunking, through a DeepSpeed engine."""
    from ray_apps.training.deepspeed_engine import engine_backward, make_engine

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=2)
    reference, found = reference_of(start), {}
    for way in WAYS:
        for chunks in CHUNKS:
            rl = settings(way, chunks, optim={"zero_stage": zero_stage, "lr": 1e-3})
            more = extra(ReasoningEmbedder.load(start))
            engine = make_engine(ReasoningEmbedder.load(start), rl.optim, 2, 2)
            step = accumulate_gradients(
                make(engine.module, SHARES[number]),
                rl,
                16,
                24,
                lambda sequences, engine=engine: engine(sequences, TEMPERATURE),
                engine_backward(engine),
                engine.device,
                Candidates(more.embeddings[number::2], more.keys[number::2]),
                (lambda sequences: reference(sequences, TEMPERATURE)) if way == "kl" else None,
            )
            found[f"{way}/{chunks}"] = step.values, full_gradient(engine)
            engine.destroy()
    if number == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("zero_stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 2)), 3])
def test_two_ranks_are_one(tiny_folder: Path, tmp_path: Path, zero_stage: int) -> None:
    """Two queries on one rank and three on the other: the gradient and the values of the whole batch."""
    mp.spawn(run_rank, args=(zero_stage, str(tiny_folder), str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "found.pt")
    assert len(found) == len(WAYS) * len(CHUNKS)
    for name, (values, gradient) in found.items():
        model = ReasoningEmbedder.load(tiny_folder)
        expected = plain(model, reference_of(tiny_folder), name.split("/")[0])
        whole = gradient_of(model)
        assert values == pytest.approx(values | expected, rel=1e-4), name
        assert ((gradient - whole).norm() / whole.norm()).item() < 1e-5, name
