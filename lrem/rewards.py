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


def rank(queries: Tensor, wanted: Tensor, items: Tensor, keys: Tensor) -> tuple[Tensor, int]:
    """rank(d_i) = 1 + Σ_j 1[s(q, d_j) > s(q, d_i)] over distinct products, strictly greater: a tie costs nothing.

    Args:
        queries: [B, H] unit. wanted: [B] key of the product each query wants, one of `keys`.
        items: [M, H] unit, with a product more than once or not. keys: [M] int64, identity of each product.

    Returns:
        Ranks [B], and N, the number of distinct products ranked.

    >>> items = torch.tensor([[1., 0.], [0., 1.], [1., 0.]])
    >>> rank(torch.tensor([[.6, .8]]), torch.tensor([5]), items, torch.tensor([5, 7, 5]))
    (tensor([2]), 2)
    """
    distinct, inverse = keys.unique(return_inverse=True)  # [N], [M]
    first = torch.full_like(distinct, len(keys)).scatter_reduce(
        0, inverse, torch.arange(len(keys), device=keys.device), reduce="amin"
    )
    similarities = queries @ items[first].T  # [B, N]
    own = similarities.gather(1, torch.searchsorted(distinct, wanted)[:, None])  # [B, 1]
    return 1 + (similarities > own).sum(1), len(distinct)


def accuracy_reward(ranks: Tensor, candidates: int) -> Tensor:
    """r_acc = 1 − log rank / log N: 1 at rank 1, 0 at rank N. ranks: [B] → [B].

    >>> [round(r, 4) for r in accuracy_reward(torch.tensor([1, 10, 100]), 100).tolist()]
    [1.0, 0.5, 0.0]
    """
    if candidates < 2:
        raise ValueError(f"a rank among {candidates} candidates says nothing: use a batch of at least 2 items")
    return 1 - torch.log(ranks.float()) / math.log(candidates)


def reward_parts(
    well_formed: Tensor, lengths: Tensor, budget: int, ranks: Tensor, candidates: int
) -> dict[str, Tensor]:
    """The three parts by name, [B] each. Malformed output earns nothing, whatever was retrieved with it.

    >>> parts = reward_parts(torch.tensor([True, False]), torch.tensor([3, 3]), 16, torch.tensor([1, 1]), 9)
    >>> {name: part.tolist() for name, part in parts.items()}
    {'format': [1.0, 0.0], 'length': [1.0, 0.0], 'accuracy': [1.0, 0.0]}
    """
    return {
        "format": format_reward(well_formed),
        "length": length_reward(lengths, budget) * well_formed,
        "accuracy": accuracy_reward(ranks, candidates) * well_formed,
    }


def combine(parts: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """r = Σ w·r_part. parts: name → [B]; weights: name → weight, one for each part."""
    return torch.stack([weights[name] * part for name, part in parts.items()]).sum(0)
