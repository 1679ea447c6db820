"""A batch of stage 2 with malformed, overlong and uniform groups; its loss and gradient by definition."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrem.config import ReinforceConfig
from lrem.data.known_positives import KnownPositives
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad
from lrem.training.grpo_step import Candidates, GrpoBatch, collate
from lrem.training.losses import info_nce
from lrem.training.policy_loss import Clip, group_advantage, kl_to_reference, policy_gradient, token_weights
from lrem.training.rewards import RolloutOutcome, combine_rewards, rank_targets
from lrem.training.rollout import Rollout

TEMPERATURE, GROUP_SIZE = 0.8, 3
QUERIES = ["red coat", "a warm hat", "scarf", "blue silk shirt for summer", "coat"]
TITLES = ["red wool coat", "wool hat", "silk scarf", "blue silk shirt", "black coat"]
KNOWN = KnownPositives(np.array([0, 1, 2, 3, 4, 4]), np.array([0, 1, 2, 3, 4, 0]))
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"ratio": "sequence", "aggregate": "sequence"},
    "token": {},
    "drop": {"zero_variance": "drop", "advantage": "leave_one_out", "aggregate": "constant"},
    "kl": {"kl_weight": 0.3, "correction": "token", "correction_cap": 1.01},
}
CHUNKS = {"whole": (10**6, None), "cached": (60, 1), "row by row": (1, 40)}


def make_settings(variant: str, chunks: str = "whole", **overrides: Any) -> ReinforceConfig:
    """Return the settings of a variant of the loss and a way of chunking."""
    tokens, graphs = CHUNKS[chunks]
    settings = {"chunk_tokens": tokens, "graph_tokens": graphs, "temperature": 0.05, "group_size": GROUP_SIZE}
    return ReinforceConfig.model_validate(settings | overrides | VARIANTS[variant])


def make_rollouts(model: ReasoningEmbedder, query: int) -> list[Rollout]:
    """Return three samples of a query; query 2: all equal, query 3: one malformed, query 1: one over the budget."""
    renderer, random = model.renderer, np.random.default_rng(query)
    texts = ["", "", ""] if query == 2 else ["wool, winter", "linen", "coat, hat"]
    ids = [renderer.completion(renderer.reasoning_ids(text)) for text in texts]
    if query == 3:
        ids[1] = ids[1][1:-1]
    if query == 1:
        ids[2] = [renderer.think, *renderer.text_ids("wool hat " * 20)[:20], renderer.close, renderer.emb]
    return [Rollout(tokens, (-3 + random.random(len(tokens))).tolist(), 4) for tokens in ids]


def make_grpo_batch(model: ReasoningEmbedder, queries: list[int]) -> GrpoBatch:
    """Return a batch of some of the five queries; query 3 has a hard negative."""
    rows = [
        {
            "query": QUERIES[i],
            "title": TITLES[i],
            "query_key": i,
            "item_key": i,
            "negative_titles": ["green linen shirt"] if i == 3 else [],
            "negative_keys": [9] if i == 3 else [],
        }
        for i in queries
    ]
    return collate(rows, [make_rollouts(model, i) for i in queries], model.renderer, KNOWN)


def make_candidates(model: ReasoningEmbedder) -> Candidates:
    """Return three further items; the last of them is also in the batch."""
    titles = ("green scarf", "black hat", "wool hat")
    with torch.no_grad():
        embeddings = model.embed(pad([model.renderer.item_ids(title) for title in titles]))
    return Candidates(embeddings, torch.tensor([20, 21, 1]))


def load_reference(folder: Path | str) -> ReasoningEmbedder:
    """Return a reference policy that differs a little from the model in `folder`."""
    model = ReasoningEmbedder.load(folder)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.02)
    return model


def plain_step(model: ReasoningEmbedder, reference: ReasoningEmbedder, variant: str) -> dict[str, float]:
    """Back-propagate the definition on the whole batch, with one row per completion; return the values."""
    rl, batch = make_settings(variant), make_grpo_batch(model, [0, 1, 2, 3, 4])
    spans = [(len(g.prompt), len(g.prompt) + n) for g in batch.groups for n in g.sampled]
    padded = pad([g.prompt + c for g in batch.groups for c in g.completions], spans)
    encoded, items = model(padded, TEMPERATURE), model.embed(pad(batch.items))
    log_probs = _by_position(encoded.log_probs, spans, batch.old)
    owner = torch.arange(5).repeat_interleave(GROUP_SIZE)
    rewards = _rewards(model, batch, encoded.embeddings.detach(), items.detach(), owner)
    advantages = group_advantage(rewards.view(5, GROUP_SIZE), rl.advantage).flatten()
    weights = token_weights(_counted(batch, rewards, rl), rl.aggregate, 24)
    if rl.correction == "token":
        capped = (log_probs.detach() - batch.old).exp().clamp(max=rl.correction_cap)
        policy = policy_gradient(log_probs, log_probs.detach(), advantages, weights * capped)
    else:
        policy = policy_gradient(log_probs, batch.old, advantages, weights, Clip(rl.ratio, 0.2, 0.2))
    contrast = info_nce(encoded.embeddings, items, owner, batch.item_keys, batch.known[owner], 0.05)
    loss = policy + 0.1 * contrast
    if rl.kl_weight:
        with torch.no_grad():
            reference_log_probs = _by_position(reference(padded, TEMPERATURE).log_probs, spans, batch.old)
        loss = loss + rl.kl_weight * kl_to_reference(log_probs, reference_log_probs, weights)
    model.zero_grad()
    loss.backward()
    return {"policy": policy.item(), "info_nce": contrast.item(), "reward": rewards.mean().item()}


def _by_position(log_probs: torch.Tensor, spans: list[tuple[int, int]], like: torch.Tensor) -> torch.Tensor:
    """Move each row's span to the left, into the shape of `like`."""
    out = torch.zeros_like(like)
    for i, (start, end) in enumerate(spans):
        part = log_probs[i, start:end]
        out = out.index_put((torch.full((len(part),), i), torch.arange(len(part))), part)
    return out


def _rewards(
    model: ReasoningEmbedder, batch: GrpoBatch, queries: torch.Tensor, items: torch.Tensor, owner: torch.Tensor
) -> torch.Tensor:
    further = make_candidates(model)
    vectors, keys = torch.cat([items, further.embeddings]), torch.cat([batch.item_keys, further.keys])
    ranking = rank_targets(queries, batch.item_keys[:5][owner], vectors, keys, batch.known[owner])
    lengths = torch.tensor([len(parsed.reasoning) for parsed in batch.parsed])
    formed = torch.tensor([parsed.well_formed for parsed in batch.parsed])
    outcome = RolloutOutcome([batch.queries[i] for i in owner], batch.reasonings, formed, lengths, 16, ranking)
    return combine_rewards(outcome, {"format": 0.5, "length": 0.2, "accuracy": 1.0})[0]


def _counted(batch: GrpoBatch, rewards: torch.Tensor, rl: ReinforceConfig) -> torch.Tensor:
    """Return the tokens that count, [B, T]; with `drop` those of groups whose rewards differ."""
    counted = batch.sampled.clone()
    if rl.zero_variance == "drop":
        uniform = [q for q in range(5) if len(set(rewards[q * GROUP_SIZE : (q + 1) * GROUP_SIZE].tolist())) == 1]
        assert 2 in uniform
        assert len(uniform) < 5
        counted[[q * GROUP_SIZE + i for q in uniform for i in range(GROUP_SIZE)]] = False
    return counted
