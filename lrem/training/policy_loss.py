"""The policy loss of stage 2 as pure functions: advantage, ratio, clip, correction, aggregation, KL.

Like those of losses.py, each loss is this rank's share, scaled so that the mean over ranks is the loss of the
global batch; a part of a batch passes weights of the whole batch, and the parts add up. Source: paper, "Stage 2".
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lrem.training.distributed import sum_over_ranks, world_size

Level = Literal["token", "sequence"]
Baseline = Literal["std", "mean", "leave_one_out"]
Aggregate = Literal["token", "sequence", "constant"]


def group_advantage(rewards: Tensor, kind: Baseline = "std", epsilon: float = 1e-6) -> Tensor:
    """A, each reward against its group's. rewards: [Q, G] → [Q, G].

    `std` is the paper's (r − mean) / std, std the population's; `mean` leaves the division out (Dr. GRPO, arXiv
    2503.20783): it weighs easy and hard queries by their std; `leave_one_out` compares with the mean of the others
    (RLOO, arXiv 2402.14740). A group whose rewards are all equal has advantage 0.

    >>> group_advantage(torch.tensor([[1., 3.], [2., 2.]])).tolist()
    [[-1.0, 1.0], [0.0, 0.0]]
    >>> group_advantage(torch.tensor([[0., 0., 3.]]), "leave_one_out").tolist()
    [[-1.5, -1.5, 3.0]]
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if kind == "mean":
        return centred
    if kind == "leave_one_out":
        return centred * (rewards.shape[1] / (rewards.shape[1] - 1))
    deviation = rewards.std(1, keepdim=True, unbiased=False)
    return torch.where(deviation > epsilon, centred / deviation.clamp(min=epsilon), torch.zeros_like(centred))


def has_reward_variance(rewards: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Which groups teach anything: those whose rewards are not all equal. rewards: [Q, G] → [Q] bool.

    >>> has_reward_variance(torch.tensor([[1., 3.], [2., 2.]])).tolist()
    [True, False]
    """
    return rewards.std(1, unbiased=False) > epsilon


class Clip(NamedTuple):
    """How the ratio is taken (`token` or `sequence`) and clipped, to [1 − low, 1 + high]."""

    level: Level = "token"
    low: float = 0.2
    high: float = 0.2


class Correction(NamedTuple):
    """Truncated importance sampling: weights π_θ / π_sampler by token or by sequence, at most `cap`."""

    level: Level = "token"
    cap: float = 3.0


DEFAULT_CLIP = Clip()


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor, scored: Tensor, level: Level = "token") -> Tensor:
    """ρ = π_θ / π_old over the sampled tokens, [B, T]: of each token, or of the whole sequence.

    >>> lp, old = torch.log(torch.tensor([[.6, .5]])), torch.log(torch.tensor([[.3, .5]]))
    >>> [round(x, 4) for x in importance_ratio(lp, old, torch.tensor([[True, True]]))[0].tolist()]
    [2.0, 1.0]
    """
    difference = (log_probs - old_log_probs) * scored
    if level == "sequence":
        difference = difference.sum(1, keepdim=True).expand_as(log_probs)
    return difference.exp()


def token_weights(scored: Tensor, aggregate: Aggregate = "token", longest: int = 1) -> Tensor:
    """What each sampled token counts in the loss; over the global batch they sum to 1 (`constant`: to at most 1).

    `token`: every token alike (DAPO, arXiv 2503.14476). `sequence`: every sequence alike (GRPO, arXiv 2402.03300).
    `constant`: a token counts 1 / (sequences × longest), whatever the lengths (Dr. GRPO): neither long nor short
    answers are favoured.

    Args:
        scored: [B, T] bool, the sampled tokens of the sequences that count; a row without any does not count.

    >>> token_weights(torch.tensor([[True, True], [True, False]]), "sequence").tolist()
    [[0.25, 0.25], [0.5, 0.0]]
    """
    weights = scored.float()
    if aggregate == "token":
        return weights / sum_over_ranks(weights.sum()).clamp(min=1)
    sequences = sum_over_ranks(scored.any(1).sum()).clamp(min=1)
    if aggregate == "constant":
        return weights / (sequences * longest)
    return weights / weights.sum(1, keepdim=True).clamp(min=1) / sequences


def policy_gradient(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    clip: Clip = DEFAULT_CLIP,
    correction: Correction | None = None,
) -> Tensor:
    """L_GRPO = −Σ w · min(ρ A, clip(ρ, 1 − low, 1 + high) A) over the sampled tokens.

    Without `correction` ρ is taken against the sampler, which then also corrects for stale rollouts as far as the
    clip allows. With it ρ is taken against the present policy (1 in value, for one update a batch), and each term is
    weighted by min(π_θ / π_sampler, cap), without gradient (TIS).

    Args:
        log_probs, old_log_probs: [B, T], nats; of the policy, and as the sampler reported them. advantages: [B].
        weights: [B, T], see `token_weights`; 0 on tokens that were not sampled: penalising forced ones destroys the
            format.
    """
    scored = weights > 0
    if correction is None:
        rho = importance_ratio(log_probs, old_log_probs, scored, clip.level)  # [B, T]
    else:
        rho = importance_ratio(log_probs, log_probs.detach(), scored, clip.level)
        weights = weights * importance_ratio(log_probs.detach(), old_log_probs, scored, correction.level).clamp(
            max=correction.cap
        )
    clipped = rho.clamp(1 - clip.low, 1 + clip.high)
    gain = torch.minimum(rho * advantages[:, None], clipped * advantages[:, None])
    return -(gain * weights).sum() * world_size()


def kl_to_reference(log_probs: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
    """KL(π_θ ‖ π_ref) from the policy's own samples: e^d − d − 1 with d = log π_ref − log π_θ; never negative.

    Args:
        log_probs, reference: [B, T], nats. weights: [B, T], see `token_weights`.

    Source: Schulman, "Approximating KL divergence", the estimator k3.

    >>> kl_to_reference(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1)).item()
    0.0
    """
    difference = reference - log_probs
    return ((difference.exp() - difference - 1) * weights).sum() * world_size()


def clipped_tokens(log_probs: Tensor, old_log_probs: Tensor, scored: Tensor, clip: Clip = DEFAULT_CLIP) -> Tensor:
    """Which sampled tokens the clip would cut, [B, T] bool; for the log, no gradient."""
    rho = importance_ratio(log_probs.detach(), old_log_probs, scored, clip.level)
    return ((rho < 1 - clip.low) | (rho > 1 + clip.high)) & scored
