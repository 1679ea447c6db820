"""The rewards of stage 2: named, weighted, pure functions of the outcome of a batch of rollouts.

`format`, `length` and `accuracy` are the paper's; the others are options from related work. A reward of your own is any
function RolloutOutcome → Tensor [B], named by its import path. Source: paper, "Stage 2".
"""

import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lrem.data.words import literals, words
from lrem.errors import RewardError


class TargetRanks(NamedTuple):
    """The rank [B] of each query's target item, from 1, among N candidates, and its margin [B].

    The margin is the target's cosine minus the best other candidate's.
    """

    ranks: Tensor
    candidates: int
    margins: Tensor


class RolloutOutcome(NamedTuple):
    """B rollouts and their ranks. Queries and reasonings are text; lengths count the reasoning's tokens."""

    queries: list[str]
    reasonings: list[str]
    well_formed: Tensor  # [B] bool
    lengths: Tensor  # [B]
    budget: int
    ranking: TargetRanks


Reward = Callable[[RolloutOutcome], Tensor]

# two rollouts for the doctests: a good one at rank 1, and a malformed, overlong one at rank 10 that invents a number
_EXAMPLE = RolloutOutcome(
    queries=["red coat", "coat"],
    reasonings=["coat wool", "hat 7"],
    well_formed=torch.tensor([True, False]),
    lengths=torch.tensor([3, 20]),
    budget=16,
    ranking=TargetRanks(torch.tensor([1, 10]), candidates=100, margins=torch.tensor([0.2, -0.2])),
)


def rank_targets(
    queries: Tensor, targets: Tensor, items: Tensor, keys: Tensor, known: Tensor | None = None
) -> TargetRanks:
    """Return rank(d_i) = 1 + Σ_j 1[s(q, d_j) > s(q, d_i)] over distinct items; a tie costs nothing.

    Args:
        queries: [B, H] unit. targets: [B] key of each query's relevant item, one of `keys`.
        items: [M, H] unit; an item may appear more than once. keys: [M] int64, identity of each item.
        known: [B, P] keys of other relevant items; these cost nothing either.

    >>> items = torch.tensor([[1., 0.], [0., 1.], [1., 0.]])
    >>> ranking = rank_targets(torch.tensor([[.6, .8]]), torch.tensor([5]), items, torch.tensor([5, 7, 5]))
    >>> ranking.ranks.tolist(), ranking.candidates
    ([2], 2)
    """
    distinct, inverse = keys.unique(return_inverse=True)  # [N], [M]
    first = torch.full_like(distinct, len(keys)).scatter_reduce(
        0, inverse, torch.arange(len(keys), device=keys.device), reduce="amin"
    )
    similarities = queries @ items[first].T  # [B, N]
    place = torch.searchsorted(distinct, targets)[:, None]
    own = similarities.gather(1, place)  # [B, 1]
    others = similarities.scatter(1, place, -math.inf)
    if known is not None:
        column = torch.searchsorted(distinct, known).clamp(max=len(distinct) - 1)  # [B, P]
        relevant = torch.zeros_like(others).scatter_add(1, column, (distinct[column] == known).float()) > 0
        others = others.masked_fill(relevant, -math.inf)
    best = others.max(1).values if others.shape[1] > 1 else own[:, 0]
    margins = torch.where(best.isinf(), torch.zeros_like(best), own[:, 0] - best)
    return TargetRanks(1 + (others > own).sum(1), len(distinct), margins)


def nearest_items(queries: Tensor, items: Tensor, count: int) -> Tensor:
    """Return the rows of `items` that are among the `count` nearest of any query, ascending; [K ≤ B · count].

    Args:
        queries: [B, H] unit. items: [M, H] unit.

    >>> nearest_items(torch.tensor([[1., 0.], [.8, .6]]), torch.tensor([[0., 1.], [1., 0.], [-1., 0.]]), 1).tolist()
    [1]
    """
    return (queries @ items.T).topk(min(count, len(items)), dim=1).indices.unique()


def format_reward(outcome: RolloutOutcome) -> Tensor:
    """Return r_format: 1 for `<think> … </think><emb>`, else 0. `Renderer.parse` decides.

    >>> format_reward(_EXAMPLE).tolist()
    [1.0, 0.0]
    """
    return outcome.well_formed.float()


def length_reward(outcome: RolloutOutcome) -> Tensor:
    """Return r_length: 1 if the reasoning has at most `budget` tokens, else 0.

    >>> length_reward(_EXAMPLE).tolist()
    [1.0, 0.0]
    """
    return (outcome.lengths <= outcome.budget).float()


def accuracy_reward(outcome: RolloutOutcome) -> Tensor:
    """Return r_acc = 1 − log rank / log N: 1 at rank 1, 0 at rank N.

    >>> accuracy_reward(_EXAMPLE).tolist()
    [1.0, 0.5]

    Raises:
        RewardError: fewer than two candidates.
    """
    ranks, candidates, _ = outcome.ranking
    if candidates < 2:
        raise RewardError(f"a rank among {candidates} candidates is meaningless: use a batch of at least 2 items")
    return 1 - torch.log(ranks.float()) / math.log(candidates)


def top_ranks_reward(outcome: RolloutOutcome) -> Tensor:
    """Return a piecewise linear reward of the rank: 1 → ½ over ranks 1 to 10, ½ → 0 over 11 to 100, 0 beyond.

    Less convex at the top, where 1 − log rank favours betting on one keyword. Source: ConvSearch-R1 (arXiv
    2505.15776), whose range 2 … 0 is halved here so that the weights of all parts mean the same.

    >>> top_ranks_reward(_EXAMPLE).tolist()
    [1.0, 0.5]
    """
    ranks = outcome.ranking.ranks.float()
    top, middle = 1 - (ranks - 1) / 18, 0.5 - (ranks - 10) / 180
    return torch.where(ranks <= 10, top, middle.clamp(min=0))


def margin_reward(outcome: RolloutOutcome) -> Tensor:
    """Return ½ + margin / 4, in [0, 1]: it still improves once the rank is 1.

    >>> [round(value, 2) for value in margin_reward(_EXAMPLE).tolist()]
    [0.55, 0.45]
    """
    return 0.5 + outcome.ranking.margins / 4


def exclusivity_reward(outcome: RolloutOutcome) -> Tensor:
    """Return the share of the reasoning's words that are not in the query: repeating it is not reasoning.

    Source: Retrieval-GRPO (arXiv 2511.13885), "exclusivity".

    >>> exclusivity_reward(_EXAMPLE).tolist()
    [0.5, 1.0]
    """
    return _each(outcome, _new_words)


def literals_reward(outcome: RolloutOutcome) -> Tensor:
    """Return 0 if the reasoning has a literal (a word with a digit, as a model number) that the query lacks, else 1.

    Source: PROSPER (arXiv 2510.18527): invented literal terms mislead the search.

    >>> literals_reward(_EXAMPLE).tolist()
    [1.0, 0.0]
    """
    return _each(outcome, lambda query, reasoning: float(not literals(reasoning) - literals(query)))


def _each(outcome: RolloutOutcome, score: Callable[[str, str], float]) -> Tensor:
    values = [score(query, text) for query, text in zip(outcome.queries, outcome.reasonings, strict=True)]
    return torch.tensor(values, device=outcome.lengths.device)


def _new_words(query: str, reasoning: str) -> float:
    distinct = set(words(reasoning))
    return len(distinct.difference(words(query))) / len(distinct) if distinct else 0.0


BUILT_IN: dict[str, Reward] = {
    "format": format_reward,
    "length": length_reward,
    "accuracy": accuracy_reward,
    "top_ranks": top_ranks_reward,
    "margin": margin_reward,
    "exclusivity": exclusivity_reward,
    "literals": literals_reward,
}


def load_reward(name: str) -> Reward:
    """Return a built-in reward by name, or your own by `module:function`.

    Raises:
        RewardError: there is no such reward; the message lists the built-in ones.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    if ":" not in name:
        raise RewardError(
            f"no reward '{name}': use one of {', '.join(BUILT_IN)}, or your own as package.module:function"
        )
    try:
        reward: Reward = pkgutil.resolve_name(name)
        return reward
    except (ImportError, AttributeError) as error:
        raise RewardError(
            f"reward '{name}' cannot be imported ({error}): install its package on every worker"
        ) from error


def combine_rewards(outcome: RolloutOutcome, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return r = Σ w · r_part [B], and the parts by name [B]. Malformed output has reward 0, so no part is negative.

    Args:
        weights: name (see `load_reward`) → weight; a part of weight 0 is not computed.

    Raises:
        RewardError: a part is not [B] finite numbers ≥ 0.

    >>> combine_rewards(_EXAMPLE, {"format": 0.5, "accuracy": 1.0})[0].tolist()
    [1.5, 0.0]
    """
    parts: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight == 0:
            continue
        value = load_reward(name)(outcome).float()
        if value.shape != outcome.lengths.shape:
            raise RewardError(
                f"reward '{name}' returned shape {tuple(value.shape)} for {len(outcome.queries)} rollouts"
            )
        if not value.isfinite().all() or (value < 0).any():
            raise RewardError(
                f"reward '{name}' returned {value.min().item():.4g} to {value.max().item():.4g}: rewards must be "
                "finite and ≥ 0, because malformed output has reward 0"
            )
        parts[name] = value * outcome.well_formed
    rewards = torch.zeros(len(outcome.queries), device=outcome.lengths.device)
    for name, value in parts.items():
        rewards = rewards + weights[name] * value
    return rewards, parts
