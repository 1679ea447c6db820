"""Advantage, ratio, clip, correction, aggregation and KL against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrem.training.policy_loss import (
    Clip,
    Correction,
    clipped_tokens,
    group_advantage,
    has_reward_variance,
    importance_ratio,
    kl_to_reference,
    policy_gradient,
    token_weights,
)


def logs(*rows: list[float]) -> torch.Tensor:
    return torch.log(torch.tensor(rows))


def test_group_advantage_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0, 6.0], [0.3, 0.3, 0.3, 0.3]])
    deviation = math.sqrt((4 + 1 + 0 + 9) / 4)
    expected = {
        "std": [-2 / deviation, -1 / deviation, 0, 3 / deviation],
        "mean": [-2, -1, 0, 3],
        "leave_one_out": [1 - 11 / 3, 2 - 10 / 3, 3 - 9 / 3, 6 - 6 / 3],
    }
    for kind, row in expected.items():
        advantages = group_advantage(rewards, kind)  # type: ignore[arg-type]
        assert advantages[0].tolist() == pytest.approx(row, abs=1e-6), kind
        assert advantages[1].tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6), kind
    assert has_reward_variance(rewards).tolist() == [True, False]


def test_ratio_of_tokens_and_of_the_sequence() -> None:
    log_probs, old = logs([0.6, 0.2, 0.9]), logs([0.3, 0.4, 0.1])
    scored = torch.tensor([[True, True, False]])
    assert importance_ratio(log_probs, old, scored)[0].tolist() == pytest.approx([2.0, 0.5, 1.0])
    assert importance_ratio(log_probs, old, scored, "sequence")[0].tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("advantage", "low", "high", "expected"),
    [
        (1.0, 0.2, 0.2, -(1.2 + 0.5) / 2),  # the clip bites where it would gain
        (-1.0, 0.2, 0.2, (2.0 + 0.8) / 2),
        (1.0, 0.2, 0.5, -(1.5 + 0.5) / 2),  # a wider upper side (DAPO's clip-higher)
        (-1.0, 0.6, 0.2, (2.0 + 0.5) / 2),
    ],
)
def test_policy_gradient_clips_the_gain(advantage: float, low: float, high: float, expected: float) -> None:
    log_probs, old = logs([0.6, 0.2]), logs([0.3, 0.4])
    scored = torch.ones(1, 2, dtype=torch.bool)
    loss = policy_gradient(log_probs, old, torch.tensor([advantage]), token_weights(scored), Clip("token", low, high))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert clipped_tokens(log_probs, old, scored).tolist() == [[True, True]]
    assert clipped_tokens(log_probs, old, scored, Clip("token", 0.6, 1.5)).tolist() == [[False, False]]


def test_on_policy_gradient_is_the_advantage_times_the_score() -> None:
    log_probs = logs([0.5, 0.25], [0.1, 0.3]).requires_grad_()
    scored = torch.tensor([[True, True], [True, False]])
    policy_gradient(log_probs, log_probs.detach(), torch.tensor([2.0, -1.0]), token_weights(scored)).backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([pytest.approx([-2 / 3, -2 / 3]), pytest.approx([1 / 3, 0.0])])


def test_a_sequence_ratio_counts_every_sequence_once() -> None:
    log_probs = logs([0.5, 0.5], [0.5, 0.5]).requires_grad_()
    weights = token_weights(torch.tensor([[True, True], [True, False]]), "sequence")
    policy_gradient(log_probs, log_probs.detach(), torch.ones(2), weights, Clip("sequence")).backward()
    assert log_probs.grad is not None
    # d/dlog p of the sequence's ratio reaches each of its tokens whole
    assert log_probs.grad.tolist() == [pytest.approx([-0.5, -0.5]), pytest.approx([-0.5, 0.0])]


def test_what_a_token_counts() -> None:
    scored = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert token_weights(scored, "token")[:, 0].tolist() == [0.25, 0.25, 0.0]
    assert token_weights(scored, "sequence")[:, 0].tolist() == pytest.approx([1 / 6, 1 / 2, 0.0])
    assert token_weights(scored, "constant", 5)[:, 0].tolist() == pytest.approx([0.1, 0.1, 0.0])  # 2 sequences × 5


@pytest.mark.parametrize(
    ("level", "cap", "weights"),
    [
        ("token", 3.0, [2.0, 0.5]),
        ("token", 1.5, [1.5, 0.5]),
        ("sequence", 3.0, [1.0, 1.0]),
        ("sequence", 0.7, [0.7] * 2),
    ],
)
def test_correction_weighs_the_score_by_the_truncated_ratio(level: str, cap: float, weights: list[float]) -> None:
    """Ratios to the sampler are 2 and ½, their product 1; the clip does not bite, the ratio to itself is 1."""
    log_probs = logs([0.6, 0.2]).requires_grad_()
    how = Correction(level, cap)  # type: ignore[arg-type]
    scored = token_weights(torch.ones(1, 2, dtype=torch.bool))
    loss = policy_gradient(log_probs, logs([0.3, 0.4]), torch.tensor([3.0]), scored, correction=how)
    assert loss.item() == pytest.approx(-3 * sum(weights) / 2, abs=1e-6)
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad[0].tolist() == pytest.approx([-3 * w / 2 for w in weights], abs=1e-6)


def test_kl_by_hand() -> None:
    """d = log(.25/.5) and log(.4/.2): e^d − d − 1 is ½ + log 2 − 1 and 2 − log 2 − 1."""
    weights = token_weights(torch.ones(1, 2, dtype=torch.bool))
    value = kl_to_reference(logs([0.5, 0.2]), logs([0.25, 0.4]), weights)
    assert value.item() == pytest.approx((0.5 + math.log(2) - 1 + 2 - math.log(2) - 1) / 2, abs=1e-6)


@given(st.lists(st.tuples(st.floats(-5, 0), st.floats(-5, 0)), min_size=1, max_size=6))
def test_kl_is_never_negative(pairs: list[tuple[float, float]]) -> None:
    log_probs, reference = (torch.tensor([values]) for values in zip(*pairs, strict=True))
    assert kl_to_reference(log_probs, reference, torch.ones_like(log_probs)).item() >= -1e-5
