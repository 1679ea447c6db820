"""The policy loss of stage 2 as pure functions: advantage, ratio, clip, correction, aggregation, KL.

As in losses.py, each loss is this rank's share, scaled so that the mean over ranks is the loss of the global batch. A
part of a batch passes weights of the whole batch, so that the parts add up. Source: paper, "Stage 2".
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lrem.training.distributed import sum_over_ranks, world_size

Level = Literal["token", "sequence"]
Baseline = Literal["std", "mean", "leave_one_out"]
Aggregate = Literal["token", "sequence", "constant"]


def group_advantage(rewards: Tensor, kind: Baseline = "std", epsilon: float = 1e-6) -> Tensor:
    """Return A, the advantage of each reward over its group: [Q, G] → [Q, G].

    `std`: the paper's A = (r − mean) / std, with the population's std. `mean`: A = r − mean (Dr. GRPO, arXiv
    2503.20783); dividing by the std weighs very easy and very hard queries more. `leave_one_out`: A = r − mean of the
    others (RLOO, arXiv 2402.14740). A group with equal rewards has advantage 0.

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
    """Return which groups have a gradient: those whose rewards differ. [Q, G] → [Q] bool.

    >>> has_reward_variance(torch.tensor([[1., 3.], [2., 2.]])).tolist()
    [True, False]
    """
    return rewards.std(1, unbiased=False) > epsilon


class Clip(NamedTuple):
    """The level of the ratio, and the range that it is clipped to: [1 − low, 1 + high]."""

    level: Level = "token"
    low: float = 0.2
    high: float = 0.2


class Correction(NamedTuple):
    """Truncated importance sampling: weights min(π_θ / π_sampler, cap), per token or per sequence."""

    level: Level = "token"
    cap: float = 3.0


DEFAULT_CLIP = Clip()


def importance_ratio(log_probs: Tensor, old_log_probs: Tensor, scored: Tensor, level: Level = "token") -> Tensor:
    """Return ρ = π_θ / π_old over the sampled tokens [B, T], of each token or of the whole sequence.

    >>> lp, old = torch.log(torch.tensor([[.6, .5]])), torch.log(torch.tensor([[.3, .5]]))
    >>> [round(x, 4) for x in importance_ratio(lp, old, torch.tensor([[True, True]]))[0].tolist()]
    [2.0, 1.0]
    """
    difference = (log_probs - old_log_probs) * scored
    if level == "sequence":
        difference = difference.sum(1, keepdim=True).expand_as(log_probs)
    return difference.exp()


def token_weights(scored: Tensor, aggregate: Aggregate = "token", longest: int = 1) -> Tensor:
    """Return each sampled token's weight in the loss; over the global batch they sum to 1 (`constant`: at most 1).

    `token`: every token has the same weight (DAPO, arXiv 2503.14476). `sequence`: every sequence has the same weight
    (GRPO, arXiv 2402.03300). `constant`: a token weighs 1 / (sequences × longest), independent of lengths (Dr. GRPO),
    so that neither long nor short answers are favoured.

    Args:
        scored: [B, T] bool, the sampled tokens that count; a row without any is not a sequence.
        longest: tokens of the longest possible sample, for `constant`.

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
    """Return L_GRPO = −Σ w · min(ρ A, clip(ρ, 1 − low, 1 + high) A) over the sampled tokens.

    Without `correction`, ρ is taken against the sampler; that also corrects for stale rollouts, within the clip. With
    it, ρ is taken against the current policy (its value is 1 with one update per batch), and each term is weighted by
    min(π_θ / π_sampler, cap), without gradient (TIS).

    Args:
        log_probs: [B, T], nats, of the policy. old_log_probs: [B, T], as reported by the sampler. advantages: [B].
        weights: [B, T], see `token_weights`; 0 on forced tokens, because penalising these destroys the format.

    >>> log_probs, old = torch.log(torch.tensor([[.6]])), torch.log(torch.tensor([[.3]]))
    >>> round(policy_gradient(log_probs, old, torch.tensor([1.]), torch.ones(1, 1)).item(), 4)  # ρ = 2, clipped to 1.2
    -1.2
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
    """Return Σ w (e^d − d − 1) with d = log π_ref − log π_θ: KL(π_θ ‖ π_ref) from the policy's own samples, ≥ 0.

    Args:
        log_probs: [B, T], nats, of the policy. reference: [B, T], of the reference policy.
        weights: [B, T], see `token_weights`.

    Source: Schulman, "Approximating KL divergence", the estimator k3.

    >>> kl_to_reference(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1, 1)).item()
    0.0
    """
    difference = reference - log_probs
    return ((difference.exp() - difference - 1) * weights).sum() * world_size()


def clipped_tokens(log_probs: Tensor, old_log_probs: Tensor, scored: Tensor, clip: Clip = DEFAULT_CLIP) -> Tensor:
    """Return which sampled tokens the clip affects, [B, T] bool, without gradient: for the log.

    >>> log_probs, old = torch.log(torch.tensor([[.6, .3]])), torch.log(torch.tensor([[.3, .3]]))
    >>> clipped_tokens(log_probs, old, torch.tensor([[True, True]])).tolist()
    [[True, False]]
    """
    rho = importance_ratio(log_probs.detach(), old_log_probs, scored, clip.level)
    return ((rho < 1 - clip.low) | (rho > 1 + clip.high)) & scored
