"""The losses of both stages, as pure functions of tensors.

Each returns this rank's share, scaled so that the MEAN over ranks, which is what data-parallel training
takes of gradients, is exactly the loss over the global batch: weights between terms mean the same at any
number of ranks. Source: paper, "Stage 1" and "Stage 2".
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lrem.distributed import gather, rank, row_counts, total, world_size


def sft(log_probs: Tensor, scored: Tensor, count: Tensor | None = None) -> Tensor:
    """L_SFT: negative log-likelihood of the scored tokens over `count`.

    Args:
        log_probs: [B, L], nats. scored: [B, L] bool.
        count: what the global sum is divided by; by default the scored tokens of the global batch. A part of
            a batch passes the whole batch's, and then the parts add up to the whole's loss.

    >>> sft(torch.log(torch.tensor([[.5, .25]])), torch.tensor([[True, True]])).item()
    1.03972...
    """
    if count is None:
        count = total(scored.sum())
    return -(log_probs * scored).sum() * world_size() / count.clamp(min=1)


def info_nce(
    queries: Tensor,
    items: Tensor,
    positives: Tensor,
    item_keys: Tensor,
    known: Tensor,
    temperature: float,
) -> Tensor:
    """L_InfoNCE: query → item, every item of the global batch as a negative, false negatives masked.

    A column is left out of a row's denominator where it is the same product as the row's positive, or
    another product that is known to be relevant to the row's query.

    Args:
        queries: [B, H] unit. items: [M, H] unit, this rank's: positives, and hard negatives if there are any.
        positives: [B] row of `items` each query wants. item_keys: [M] int64, identity of each row's product.
        known: [B, P] int64, identities of the products relevant to each query, filled up with -1.
        temperature: τ.

    >>> e, i = torch.eye(2), torch.arange(2)
    >>> round(info_nce(e, e, i, i, i[:, None], 1.0).item(), 6)  # -log(e / (e + 1))
    0.313262
    """
    candidates, keys = gather(items), gather(item_keys)  # [N, H], [N]
    rows = torch.arange(queries.shape[0], device=queries.device)
    own = sum(row_counts(items)[: rank()]) + positives  # [B] column of each row's positive
    false_negative = _is_known(torch.cat([known, item_keys[positives][:, None]], 1), keys)  # [B, N]
    false_negative[rows, own] = False
    logits = (queries @ candidates.T / temperature).masked_fill(false_negative, float("-inf"))
    row_losses = torch.logsumexp(logits, dim=1) - logits[rows, own]  # [B]
    return row_losses.sum() * world_size() / sum(row_counts(queries))


def _is_known(known: Tensor, keys: Tensor) -> Tensor:
    """Which of `keys` [N] stand in each row of `known` [B, P]; → [B, N] bool, without a [B, P, N] between."""
    unique, column = keys.unique(return_inverse=True)  # [U] sorted, [N]
    place = torch.searchsorted(unique, known).clamp(max=len(unique) - 1)  # [B, P]
    found = torch.zeros(known.shape[0], len(unique), dtype=torch.int32, device=keys.device)
    found.scatter_add_(1, place, (unique[place] == known).int())
    return (found > 0)[:, column]


def truncate(embeddings: Tensor, dimensions: int) -> Tensor:
    """The first `dimensions` of each embedding, unit length again. [B, H] → [B, d].

    >>> truncate(torch.tensor([[.6, .8, 0.]]), 1).tolist()
    [[1.0]]
    """
    return F.normalize(embeddings[:, :dimensions], dim=-1)


def group_advantage(rewards: Tensor, epsilon: float = 1e-6) -> Tensor:
    """A = (r − mean_G r) / std_G r, per query. rewards: [Q, G] → [Q, G]; std is the population's.

    A group whose rewards are all equal teaches nothing: its advantages are 0.

    >>> group_advantage(torch.tensor([[1., 3.], [2., 2.]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    deviation = rewards.std(1, keepdim=True, unbiased=False)
    return torch.where(deviation > epsilon, centred / deviation.clamp(min=epsilon), torch.zeros_like(centred))


def global_loss(share: Tensor) -> float:
    """The loss over the global batch, from each rank's share: for the log."""
    return (total(share) / world_size()).item()


class Clip(NamedTuple):
    """How the ratio is taken (`token` or `sequence`) and clipped, to [1 − low, 1 + high]."""

    level: str = "token"
    low: float = 0.2
    high: float = 0.2


DEFAULT_CLIP = Clip()


def ratio(log_probs: Tensor, old_log_probs: Tensor, scored: Tensor, level: str = "token") -> Tensor:
    """ρ = π_θ / π_old over the sampled tokens, [B, L]: of each token, or of the whole sequence.

    >>> lp, old = torch.log(torch.tensor([[.6, .5]])), torch.log(torch.tensor([[.3, .5]]))
    >>> [round(x, 4) for x in ratio(lp, old, torch.tensor([[True, True]]))[0].tolist()]
    [2.0, 1.0]
    """
    difference = (log_probs - old_log_probs) * scored
    if level == "sequence":
        difference = difference.sum(1, keepdim=True).expand_as(log_probs)
    return difference.exp()


def policy_gradient(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, scored: Tensor, clip: Clip = DEFAULT_CLIP
) -> Tensor:
    """L_GRPO = −mean min(ρ A, clip(ρ, 1 − low, 1 + high) A) over the sampled tokens of the global batch.

    With `clip.level` "sequence" the ratio is the whole sequence's, as the paper prints it, and the mean is
    over sequences.

    Args:
        log_probs, old_log_probs: [B, L], nats. advantages: [B]. scored: [B, L] bool, sampled tokens only:
            penalising tokens that were forced destroys the format.
    """
    rho = ratio(log_probs, old_log_probs, scored, clip.level)  # [B, L]
    clipped = rho.clamp(1 - clip.low, 1 + clip.high)
    gain = torch.minimum(rho * advantages[:, None], clipped * advantages[:, None])
    weights = scored.float()
    if clip.level == "sequence":
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)  # every sequence counts once
    return -(gain * weights).sum() * world_size() / total(weights.sum()).clamp(min=1)


def clip_fraction(log_probs: Tensor, old_log_probs: Tensor, scored: Tensor, clip: Clip = DEFAULT_CLIP) -> Tensor:
    """Share of the sampled tokens whose ratio the clip would cut; for the log, no gradient."""
    rho = ratio(log_probs.detach(), old_log_probs, scored, clip.level)
    outside = ((rho < 1 - clip.low) | (rho > 1 + clip.high)) & scored
    return total(outside.sum()) / total(scored.sum()).clamp(min=1)
