"""Rewards against the paper's formulas."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrem.rewards import accuracy_reward, combine, format_reward, length_reward, rank


def test_rank_counts_only_strictly_better_items() -> None:
    similarities = torch.tensor([[0.5, 0.9, 0.5, 0.1], [0.2, 0.1, 0.3, 0.4]])
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    assert rank(similarities, torch.tensor([0, 3]), nothing).tolist() == [2, 1]
    assert rank(similarities, torch.tensor([3, 1]), nothing).tolist() == [4, 4]


def test_rank_leaves_out_the_same_product() -> None:
    similarities = torch.tensor([[0.5, 0.9, 0.6]])
    assert rank(similarities, torch.tensor([0]), torch.tensor([[True, True, False]])).tolist() == [2]


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
