"""The rewards of stage 2: format, length, retrieval accuracy. Pure functions; source: paper, "Stage 2"."""

import math

import torch
from torch import Tensor


def format_reward(well_formed: Tensor) -> Tensor:
    """r_format: 1 for `<think> … </think><emb>`, else 0. well_formed: [B] bool → [B]."""
    return well_formed.float()


def length_reward(lengths: Tensor, budget: int) -> Tensor:
    """r_length: 1 if the reasoning has at most `budget` tokens, else 0. lengths: [B] → [B].

    >>> length_reward(torch.tensor([16, 17]), 16).tolist()
    [1.0, 0.0]
    """
    return (lengths <= budget).float()


def rank(similarities: Tensor, own: Tensor, excluded: Tensor) -> Tensor:
    """rank(d_i) = 1 + Σ_j 1[s(q, d_j) > s(q, d_i)], strictly greater, so a tie costs nothing.

    Args:
        similarities: [B, N]. own: [B] column of each row's wanted item. excluded: [B, N] bool, columns
            that do not count (the same product again).

    >>> rank(torch.tensor([[.3, .9, .3]]), torch.tensor([0]), torch.zeros(1, 3, dtype=torch.bool)).tolist()
    [2]
    """
    wanted = similarities.gather(1, own[:, None])
    return 1 + ((similarities > wanted) & ~excluded).sum(1)


def accuracy_reward(ranks: Tensor, candidates: int) -> Tensor:
    """r_acc = 1 − log rank / log N: 1 at rank 1, 0 at rank N. ranks: [B] → [B].

    >>> [round(r, 4) for r in accuracy_reward(torch.tensor([1, 10, 100]), 100).tolist()]
    [1.0, 0.5, 0.0]
    """
    if candidates < 2:
        raise ValueError(f"a rank among {candidates} candidates says nothing: use a batch of at least 2 items")
    return 1 - torch.log(ranks.float()) / math.log(candidates)


def combine(parts: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """r = Σ w·r_part. parts: name → [B]; weights: name → weight, one for each part."""
    return torch.stack([weights[name] * part for name, part in parts.items()]).sum(0)
