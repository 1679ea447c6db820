"""One step of stage 2: GRPO on the sampled reasonings, and InfoNCE on the embeddings that have read them.

One forward of each prompt with its G completions serves all: the ratio's log-probabilities, the embeddings for the
reward's ranks, and InfoNCE. The caller hands in the rollouts and what runs forward and backward. Source: paper,
"Stage 2".
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrem.config import ReinforceConfig
from lrem.data.known_positives import KnownPositives
from lrem.modeling.encoding import EncoderOutput
from lrem.modeling.sequences import Group, Sequences
from lrem.modeling.template import ParsedCompletion, Renderer
from lrem.training.distributed import gather_rows, sum_over_ranks, world_size
from lrem.training.gradcache import Backward, Chunk, cached_backward, make_chunks, make_group_chunks
from lrem.training.losses import info_nce
from lrem.training.policy_loss import (
    Clip,
    Correction,
    clipped_tokens,
    group_advantage,
    has_reward_variance,
    kl_to_reference,
    policy_gradient,
    token_weights,
)
from lrem.training.rewards import RolloutOutcome, combine_rewards, rank_targets
from lrem.training.rollout import Rollout

PERCENTILES = (10, 50, 90)


class GrpoBatch(NamedTuple):
    """One rank's rows of a step: Q queries with G rollouts each (B = Q·G), and M ≥ Q items, the positives first."""

    queries: list[str]
    groups: list[Group]
    parsed: list[ParsedCompletion]  # [B]
    reasonings: list[str]  # [B]
    old: Tensor  # [B, T] log-probabilities, as the sampler reported them
    sampled: Tensor  # [B, T] bool
    versions: Tensor  # [B] of the policy that sampled each rollout
    items: list[list[int]]  # [M]
    item_keys: Tensor  # [M]
    known: Tensor  # [Q, P], see info_nce


class Candidates(NamedTuple):
    """Further items to rank the target among: unit embeddings [C, H] without gradient, and keys [C]."""

    embeddings: Tensor
    keys: Tensor


class GrpoStepResult(NamedTuple):
    """The global batch's values for the log, and this rank's rewards [B], their parts and ranks."""

    values: dict[str, float]
    rewards: Tensor
    parts: dict[str, Tensor]
    ranks: Tensor


def collate(
    rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Sequence[Rollout]], renderer: Renderer, known: KnownPositives
) -> GrpoBatch:
    """Turn rows and their rollouts into a batch.

    A malformed rollout gets a forced `</think><emb>`, so that it can be embedded; forced tokens are never scored.

    Args:
        rows: `query`, `title`, `query_key`, `item_key`, and optionally `negative_titles` with `negative_keys`.
    """
    groups, parsed, flat = [], [], [rollout for group in rollouts for rollout in group]
    for row, group in zip(rows, rollouts, strict=True):
        parsed_group = [renderer.parse(rollout.tokens) for rollout in group]
        forced = [[] if one.well_formed else [renderer.close, renderer.emb] for one in parsed_group]
        completions = [rollout.tokens + tail for rollout, tail in zip(group, forced, strict=True)]
        groups.append(Group(renderer.query_prompt(row["query"]), completions, [len(r.tokens) for r in group]))
        parsed += parsed_group
    old = torch.zeros(len(flat), max(len(rollout.tokens) for rollout in flat))
    sampled = torch.zeros_like(old, dtype=torch.bool)
    for i, rollout in enumerate(flat):
        old[i, : len(rollout.tokens)] = torch.tensor(rollout.log_probs)
        sampled[i, : len(rollout.tokens)] = True
    titles = [row["title"] for row in rows] + [t for row in rows for t in row.get("negative_titles") or []]
    keys = [row["item_key"] for row in rows] + [key for row in rows for key in row.get("negative_keys") or []]
    return GrpoBatch(
        [row["query"] for row in rows],
        groups,
        parsed,
        [renderer.reasoning_text(one.reasoning) for one in parsed],
        old,
        sampled,
        torch.tensor([rollout.version for rollout in flat]),
        [renderer.item_ids(title) for title in titles],
        torch.tensor(keys),
        torch.from_numpy(np.asarray(known.table([row["query_key"] for row in rows]))),
    )


def accumulate_gradients(  # noqa: PLR0913 - the batch, the policy and what the reward and the KL need
    batch: GrpoBatch,
    settings: ReinforceConfig,
    budget: int,
    longest: int,
    forward: Callable[[Sequences], EncoderOutput],
    step_backward: Backward,
    device: torch.device,
    candidates: Candidates,
    reference: Callable[[Sequences], EncoderOutput] | None = None,
) -> GrpoStepResult:
    """Back-propagate L = grpo_weight · L_GRPO + info_nce_weight · L_InfoNCE + kl_weight · KL, in chunks.

    Args:
        budget: reasonings up to this many tokens get the length reward. longest: tokens of the longest possible sample.
        forward: the policy at the temperature of the rollouts.
        reference: the reference policy of the KL term; None: no KL.
    """
    objective = _Objective(batch, settings, (budget, longest), device, candidates, reference)
    chunks = make_group_chunks(batch.groups, settings.chunk_tokens, device)
    chunks += make_chunks(batch.items, None, len(batch.parsed), settings.chunk_tokens, device)
    cached_backward(
        chunks, forward, objective.contrastive_loss, objective.policy_loss, step_backward, settings.graph_tokens
    )
    return objective.result()


class _Objective:
    """The loss of one step. `contrastive_loss` runs first: it computes the rewards that `policy_loss` needs."""

    def __init__(
        self,
        batch: GrpoBatch,
        settings: ReinforceConfig,
        limits: tuple[int, int],
        device: torch.device,
        candidates: Candidates,
        reference: Callable[[Sequences], EncoderOutput] | None,
    ) -> None:
        self.settings, self.batch = settings, batch
        self.budget, self.longest = limits
        self.candidates, self.reference = candidates, reference
        self.old, self.sampled = batch.old.to(device), batch.sampled.to(device)
        self.item_keys, self.known = batch.item_keys.to(device), batch.known.to(device)
        group = len(batch.parsed) // len(batch.groups)
        self.owner = torch.arange(len(batch.groups), device=device).repeat_interleave(group)  # [B]
        self.clip = Clip(settings.ratio, settings.clip_low, settings.clip_high)
        correction = settings.correction
        self.correction = None if correction == "none" else Correction(correction, settings.correction_cap)
        self.sums: dict[str, Tensor] = {}
        self.policy_value = torch.zeros((), device=device)

    def contrastive_loss(self, embeddings: Tensor) -> Tensor:
        """Compute the rewards from the embeddings [B+M, H], then InfoNCE over all G reasonings of each query."""
        settings, size = self.settings, len(self.owner)
        queries, items = embeddings[:size], embeddings[size:]
        started = time.perf_counter()
        with torch.no_grad():
            self._reward(queries.detach(), items.detach())
        self.reward_s = time.perf_counter() - started
        loss = info_nce(queries, items, self.owner, self.item_keys, self.known[self.owner], settings.temperature)
        self.info_nce = loss.detach()
        return settings.info_nce_weight * loss

    def _reward(self, queries: Tensor, items: Tensor) -> None:
        settings, batch = self.settings, self.batch
        vectors = gather_rows(torch.cat([items, self.candidates.embeddings]))
        keys = gather_rows(torch.cat([self.item_keys, self.candidates.keys]))
        targets = self.item_keys[: len(batch.groups)][self.owner]
        self.ranking = rank_targets(queries, targets, vectors, keys, self.known[self.owner])
        device = queries.device
        self.lengths = torch.tensor([len(parsed.reasoning) for parsed in batch.parsed], device=device)
        self.well_formed = torch.tensor([parsed.well_formed for parsed in batch.parsed], device=device)
        queries_of = [batch.queries[i] for i in self.owner.tolist()]
        outcome = RolloutOutcome(
            queries_of, batch.reasonings, self.well_formed, self.lengths, self.budget, self.ranking
        )
        self.rewards, self.parts = combine_rewards(outcome, settings.rewards.weights())
        grouped = self.rewards.view(len(batch.groups), -1)  # [Q, G]
        self.varied = has_reward_variance(grouped)
        self.advantages = group_advantage(grouped, settings.advantage).flatten()
        counted = self.sampled
        if settings.zero_variance == "drop":
            counted = counted & self.varied[self.owner][:, None]
        self.weights = token_weights(counted, settings.aggregate, self.longest)

    def policy_loss(self, encoded: EncoderOutput, chunk: Chunk) -> Tensor | None:
        """Return the policy's term of one chunk of groups; None for items."""
        if encoded.log_probs is None:
            return None
        settings, rows = self.settings, chunk.rows
        log_probs = encoded.log_probs[: len(rows)]  # [b, t]
        width = slice(log_probs.shape[1])
        old, scored, weights = self.old[rows, width], self.sampled[rows, width], self.weights[rows, width]
        term = policy_gradient(log_probs, old, self.advantages[rows], weights, self.clip, self.correction)
        self.policy_value += term.detach()
        loss = settings.grpo_weight * term
        if self.reference is not None:
            with torch.no_grad():
                reference = self.reference(chunk.sequences).log_probs
            assert reference is not None  # the same tokens are scored
            divergence = kl_to_reference(log_probs, reference[: len(rows)], weights)
            self._add("kl", divergence.detach())
            loss = loss + settings.kl_weight * divergence
        self._add_statistics(log_probs.detach(), old, scored)
        return loss

    def _add_statistics(self, log_probs: Tensor, old: Tensor, scored: Tensor) -> None:
        difference = (log_probs - old)[scored]
        self._add("entropy", -log_probs[scored].sum())  # unbiased on-policy: the policy's own samples
        self._add("mismatch_kl", (difference.exp() - difference - 1).sum())
        clipped = (
            clipped_tokens(log_probs, old, scored, self.clip) if self.correction is None else torch.zeros_like(scored)
        )
        self._add("clip_fraction", clipped.sum())

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, torch.zeros_like(self.policy_value)) + value

    def result(self) -> GrpoStepResult:
        """Return the step's values over the global batch; every rank must call."""
        shares = sum_over_ranks(torch.stack([self.policy_value, self.info_nce, *self.sums.values()]))
        losses = (shares[:2] / world_size()).tolist()
        sums = dict(zip(self.sums, shares[2:].tolist(), strict=True))
        values = {"policy": losses[0], "info_nce": losses[1], "reward_s": self.reward_s}
        if "kl" in sums:
            values["kl"] = sums.pop("kl") / world_size()
        tokens = sum_over_ranks(self.sampled.sum().float()).item()
        values |= {name: value / tokens for name, value in sums.items()}
        means = {f"reward_{name}": part for name, part in self.parts.items()}
        means |= {"reward": self.rewards, "format_rate": self.well_formed, "reasoning_length": self.lengths}
        means |= {"varied_groups": self.varied}
        values |= {name: _mean(part.float()) for name, part in means.items()}
        ranks = gather_rows(self.ranking.ranks).float()
        percentiles = torch.quantile(ranks, torch.tensor(PERCENTILES, device=ranks.device) / 100).tolist()
        values |= {f"rank_p{percent}": value for percent, value in zip(PERCENTILES, percentiles, strict=True)}
        values["candidates"] = float(self.ranking.candidates)
        return GrpoStepResult(values, self.rewards, self.parts, self.ranking.ranks)


def _mean(values: Tensor) -> float:
    """Return the mean over the elements of all ranks."""
    return (
        sum_over_ranks(values.sum()) / sum_over_ranks(torch.tensor(float(values.numel()), device=values.device))
    ).item()
