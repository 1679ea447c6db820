"""The losses of stage 1, which stage 2 shares in part, as pure functions of tensors.

Each returns one rank's share of the loss, scaled so that the mean over ranks is exactly the loss over the global batch:
data-parallel training averages the gradients of the ranks. So a weight between two losses means the same at any number
of ranks. Source: paper, "Stage 1".
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lrem.training.distributed import gather_rows, rank, row_counts, sum_over_ranks, world_size


def sft(log_probs: Tensor, scored: Tensor, count: Tensor | None = None) -> Tensor:
    """Return L_SFT = −Σ log π(scored tokens) / count.

    Args:
        log_probs: [B, L], nats. scored: [B, L] bool.
        count: divisor of the global sum; default: the scored tokens of the global batch. A part of a batch passes the
            count of the whole batch, so that the parts add up to the whole loss.

    >>> sft(torch.log(torch.tensor([[.5, .25]])), torch.tensor([[True, True]])).item()
    1.03972...
    """
    if count is None:
        count = sum_over_ranks(scored.sum())
    return -(log_probs * scored).sum() * world_size() / count.clamp(min=1)


def info_nce(
    queries: Tensor,
    items: Tensor,
    positives: Tensor,
    item_keys: Tensor,
    known: Tensor,
    temperature: float,
) -> Tensor:
    """Return L_InfoNCE = −mean log( e^(s(q, d⁺)/τ) / Σ_d e^(s(q, d)/τ) ), query → item.

    Every item of the global batch is a negative, except false negatives: a column is left out of a row's denominator
    if it is the same item as the row's positive, or another item known to be relevant to the row's query.

    Args:
        queries: [B, H] unit. items: [M, H] unit, this rank's: positives, and hard negatives if any.
        positives: [B] row in `items` of each query's positive. item_keys: [M] int64, identity of each row's item.
        known: [B, P] int64, identities of the items relevant to each query, padded with -1.
        temperature: τ.

    >>> e, i = torch.eye(2), torch.arange(2)
    >>> round(info_nce(e, e, i, i, i[:, None], 1.0).item(), 6)  # -log(e / (e + 1))
    0.313262
    """
    candidates, keys = gather_rows(items), gather_rows(item_keys)  # [N, H], [N]
    rows = torch.arange(queries.shape[0], device=queries.device)
    own = sum(row_counts(items)[: rank()]) + positives  # [B] column of each row's positive
    false_negative = _is_known(torch.cat([known, item_keys[positives][:, None]], 1), keys)  # [B, N]
    false_negative[rows, own] = False
    logits = (queries @ candidates.T / temperature).masked_fill(false_negative, float("-inf"))
    row_losses = torch.logsumexp(logits, dim=1) - logits[rows, own]  # [B]
    return row_losses.sum() * world_size() / sum(row_counts(queries))


def _is_known(known: Tensor, keys: Tensor) -> Tensor:
    """Return which of `keys` [N] are in each row of `known` [B, P], as [B, N] bool, without a [B, P, N] tensor."""
    unique, column = keys.unique(return_inverse=True)  # [U] sorted, [N]
    place = torch.searchsorted(unique, known).clamp(max=len(unique) - 1)  # [B, P]
    matches = torch.zeros(known.shape[0], len(unique), dtype=torch.int32, device=keys.device)
    matches.scatter_add_(1, place, (unique[place] == known).int())
    return (matches > 0)[:, column]


def truncate(embeddings: Tensor, dimensions: int) -> Tensor:
    """Return the first `dimensions` of each embedding, at unit length again: [B, H] → [B, d].

    >>> truncate(torch.tensor([[.6, .8, 0.]]), 1).tolist()
    [[1.0]]
    """
    return F.normalize(embeddings[:, :dimensions], dim=-1)
