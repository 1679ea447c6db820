"""Rewards against the paper's formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrem.rewards import accuracy_reward, combine, format_reward, length_reward, rank, reward_parts


def unit(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_rank_counts_only_strictly_better_items() -> None:
    queries, items, keys = unit(0.0, 90.0), unit(10.0, 80.0, -10.0, 45.0), torch.tensor([4, 9, 2, 7])
    ranks, count = rank(queries, torch.tensor([2, 7]), items, keys)
    assert (ranks.tolist(), count) == ([1, 2], 4)  # 10 and -10 degrees tie for the first query
    ranks, _ = rank(queries, torch.tensor([9, 2]), items, keys)
    assert ranks.tolist() == [4, 4]


def test_rank_counts_a_repeated_product_once() -> None:
    items, keys = unit(30.0, 5.0, 5.0, 5.0, 30.0), torch.tensor([1, 3, 3, 3, 1])
    ranks, count = rank(unit(0.0), torch.tensor([1]), items, keys)
    assert (ranks.tolist(), count) == ([2], 2)


@given(st.integers(2, 5000))
def test_accuracy_is_one_at_the_top_and_nought_at_the_bottom(candidates: int) -> None:
    ranks = torch.arange(1, candidates + 1)
    rewards = accuracy_reward(ranks, candidates)
    assert rewards[0].item() == 1.0
    assert rewards[-1].item() == pytest.approx(0.0, abs=1e-6)
    assert (rewards[:-1] > rewards[1:]).all()
    assert rewards[candidates // 2].item() == pytest.approx(
        1 - math.log(candidates // 2 + 1) / math.log(candidates), abs=1e-5
    )


def test_one_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 items"):
        accuracy_reward(torch.tensor([1]), 1)


def test_the_papers_weights() -> None:
    parts = {
        "format": format_reward(torch.tensor([True, False])),
        "length": length_reward(torch.tensor([16, 3]), 16),
        "accuracy": torch.tensor([0.25, 0.0]),
    }
    rewards = combine(parts, {"format": 0.5, "length": 0.2, "accuracy": 1.0})
    assert rewards.tolist() == pytest.approx([0.95, 0.2])


def test_malformed_output_earns_nothing() -> None:
    parts = reward_parts(torch.tensor([True, False]), torch.tensor([20, 3]), 16, torch.tensor([10, 1]), 100)
    rewards = combine(parts, {"format": 0.5, "length": 0.2, "accuracy": 1.0})
    assert rewards.tolist() == pytest.approx([1.0, 0.0])
