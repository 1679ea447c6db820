"""Rewards against the paper's formulas, and the options beside them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrem.errors import RewardError
from lrem.training.rewards import (
    BUILT_IN,
    RolloutOutcome,
    TargetRanks,
    accuracy_reward,
    combine_rewards,
    load_reward,
    rank_targets,
    top_ranks_reward,
)

PAPER = {"format": 0.5, "length": 0.2, "accuracy": 1.0}


def unit(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def outcome(
    ranks: list[int],
    candidates: int = 100,
    well_formed: list[bool] | None = None,
    lengths: list[int] | None = None,
    texts: list[tuple[str, str]] | None = None,
) -> RolloutOutcome:
    size = len(ranks)
    pairs = texts or [("red coat", "warm jacket")] * size
    return RolloutOutcome(
        [query for query, _ in pairs],
        [text for _, text in pairs],
        torch.tensor(well_formed or [True] * size),
        torch.tensor(lengths or [3] * size),
        16,
        TargetRanks(torch.tensor(ranks), candidates, torch.full((size,), 0.25)),
    )


def test_rank_counts_only_strictly_better_items() -> None:
    queries, items, keys = unit(0.0, 90.0), unit(10.0, 80.0, -10.0, 45.0), torch.tensor([4, 9, 2, 7])
    ranking = rank_targets(queries, torch.tensor([2, 7]), items, keys)
    assert (ranking.ranks.tolist(), ranking.candidates) == ([1, 2], 4)  # 10 and -10 degrees tie for the first query
    assert rank_targets(queries, torch.tensor([9, 2]), items, keys).ranks.tolist() == [4, 4]


def test_rank_counts_a_repeated_product_once() -> None:
    items, keys = unit(30.0, 5.0, 5.0, 5.0, 30.0), torch.tensor([1, 3, 3, 3, 1])
    ranking = rank_targets(unit(0.0), torch.tensor([1]), items, keys)
    assert (ranking.ranks.tolist(), ranking.candidates) == ([2], 2)


def test_known_relevant_items_cost_no_rank() -> None:
    """5 and 20 degrees are nearer than the target's 30; of them 5 is relevant too, and 99 is not among the items."""
    items, keys = unit(30.0, 5.0, 20.0, 60.0), torch.tensor([1, 3, 6, 8])
    known = torch.tensor([[1, 3, 99, -1]])
    ranking = rank_targets(unit(0.0), torch.tensor([1]), items, keys, known)
    assert (ranking.ranks.tolist(), ranking.candidates) == ([2], 4)
    difference = math.cos(math.radians(30)) - math.cos(math.radians(20))
    assert ranking.margins.tolist() == pytest.approx([difference], abs=1e-6)
    alone = rank_targets(unit(0.0), torch.tensor([1]), items[:2], keys[:2], known)
    assert (alone.ranks.tolist(), alone.margins.tolist()) == ([1], [0.0])


@given(st.integers(2, 5000))
def test_accuracy_is_one_at_the_top_and_nought_at_the_bottom(candidates: int) -> None:
    rewards = accuracy_reward(outcome(list(range(1, candidates + 1)), candidates))
    assert rewards[0].item() == 1.0
    assert rewards[-1].item() == pytest.approx(0.0, abs=1e-6)
    assert (rewards[:-1] > rewards[1:]).all()
    assert rewards[candidates // 2].item() == pytest.approx(
        1 - math.log(candidates // 2 + 1) / math.log(candidates), abs=1e-5
    )


def test_one_candidate_is_refused() -> None:
    with pytest.raises(RewardError, match="among 1 candidates"):
        accuracy_reward(outcome([1], 1))


def test_top_ranks_by_hand() -> None:
    rewards = top_ranks_reward(outcome([1, 10, 11, 55, 100, 101, 3000], 5000))
    assert rewards.tolist() == pytest.approx([1, 0.5, 0.5 - 1 / 180, 0.25, 0, 0, 0], abs=1e-6)


def test_the_papers_weights() -> None:
    rewards, parts = combine_rewards(outcome([1, 10], 100, lengths=[17, 16]), PAPER)
    assert rewards.tolist() == pytest.approx([1.5, 0.5 + 0.2 + 0.5])
    assert parts["length"].tolist() == [0.0, 1.0]


def test_malformed_output_earns_nothing_and_overlong_output_no_length_reward() -> None:
    found = outcome([10, 1, 1], 100, [True, False, True], [20, 3, 17])
    rewards, parts = combine_rewards(found, PAPER | {"margin": 2.0})
    margin = 2 * (0.5 + 0.25 / 4)
    assert rewards.tolist() == pytest.approx([0.5 + 0.5 + margin, 0.0, 0.5 + 1.0 + margin])
    assert parts["accuracy"].tolist() == pytest.approx([0.5, 0.0, 1.0])


def test_exclusivity_and_literals() -> None:
    texts = [("red coat", "red jacket"), ("red coat", ""), ("iphone 12 case", "iphone 12"), ("iphone 12 case", "xr 13")]
    found = outcome([1] * 4, texts=texts)
    assert load_reward("exclusivity")(found).tolist() == [0.5, 0.0, 0.0, 1.0]
    assert load_reward("literals")(found).tolist() == [1.0, 1.0, 1.0, 0.0]


def short(found: RolloutOutcome) -> torch.Tensor:
    """A reward as a user writes it."""
    return (found.lengths < 2).float()


def broken(found: RolloutOutcome) -> torch.Tensor:
    return torch.ones(1)


def negative(found: RolloutOutcome) -> torch.Tensor:
    return torch.tensor([0.5, -0.25])


def test_a_reward_of_ones_own() -> None:
    rewards, parts = combine_rewards(
        outcome([1, 1], lengths=[1, 9]), {"format": 1.0, f"{__name__}:short": 0.5, "margin": 0.0}
    )
    assert rewards.tolist() == [1.5, 1.0]
    assert list(parts) == ["format", f"{__name__}:short"]
    with pytest.raises(RewardError, match=r"broken' .*\(1,\) for 2 rollouts"):
        combine_rewards(outcome([1, 1]), {f"{__name__}:broken": 1.0})
    with pytest.raises(RewardError, match=r"negative' .*-0.25 to 0.5"):
        combine_rewards(outcome([1, 1]), {f"{__name__}:negative": 1.0})


@pytest.mark.parametrize("name", ["acuracy", "no.such.module:f", "lrem.training.rewards:nothing"])
def test_an_unknown_reward_is_named(name: str) -> None:
    with pytest.raises(RewardError, match=name) as error:
        load_reward(name)
    assert ", ".join(BUILT_IN) in str(error.value) or "cannot be imported" in str(error.value)
