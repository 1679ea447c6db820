"""Losses against numbers worked out by hand, and two ranks against one."""

import math
from random import Random

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from lrem.config import ModelConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad
from lrem.modeling.tokenizer import train_tokenizer
from lrem.training.distributed import gather_rows
from lrem.training.losses import info_nce, sft
from lrem.training.policy_loss import policy_gradient, token_weights
from tests.unit.training.gradients import gradient_of, relative_error
from tests.unit.training.two_ranks import TwoRanks

NOTHING_KNOWN = torch.full((4, 1), -1)


def test_sft_is_the_mean_over_scored_tokens() -> None:
    log_probs = torch.log(torch.tensor([[0.5, 0.25, 0.9], [0.125, 1.0, 1.0]]))
    scored = torch.tensor([[True, True, False], [True, False, False]])
    expected = (math.log(2) + math.log(4) + math.log(8)) / 3
    assert sft(log_probs, scored).item() == pytest.approx(expected, abs=1e-6)


def test_info_nce_by_hand() -> None:
    """Similarities [[.8, .6], [0, 1]] at τ = .5: the mean of log(1 + e^(-.4)) and log(1 + e^(-2))."""
    queries = torch.tensor([[0.8, 0.6], [0.0, 1.0]])
    items = torch.eye(2)
    loss = info_nce(queries, items, torch.arange(2), torch.arange(2), NOTHING_KNOWN[:2], 0.5)
    expected = (math.log(1 + math.exp(-0.4)) + math.log(1 + math.exp(-2))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_masked_duplicates_contribute_nothing() -> None:
    """Row 0's item is also column 1, and column 2 is known to be relevant to its query: it has no negative left."""
    vectors = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.manual_seed(1)), dim=1)
    item_keys, known = torch.tensor([1, 1, 2]), torch.tensor([[2, -1]])
    alone = info_nce(vectors[:1], vectors, torch.tensor([0]), item_keys, known, 0.1)
    assert alone.item() == 0.0
    row_1 = info_nce(vectors[1:2], vectors, torch.tensor([1]), item_keys, NOTHING_KNOWN[:1], 0.1)
    similarities = vectors[1] @ vectors.T / 0.1
    expected = torch.logsumexp(similarities[1:], 0) - similarities[1]
    assert row_1.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_masked_item_gets_no_gradient() -> None:
    items = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.manual_seed(2)), dim=1).requires_grad_()
    queries = torch.nn.functional.normalize(torch.randn(1, 4, generator=torch.manual_seed(3)), dim=1)
    keys, known = torch.tensor([1, 1, 2, 3, 4]), torch.tensor([[3, 9]])
    info_nce(queries, items, torch.tensor([0]), keys, known, 0.1).backward()
    assert items.grad is not None
    assert (items.grad.norm(dim=1) > 0).tolist() == [True, False, True, False, True]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.integers(1, 4), st.randoms(use_true_random=False))
def test_the_mask_is_membership(keys: list[int], width: int, random: Random) -> None:
    """Against the plain definition, row by row; -1 fills up."""
    items = torch.eye(len(keys))
    known = torch.tensor([[random.choice([-1, 0, 2, 4, 6, 99]) for _ in range(width)] for _ in keys])
    got = info_nce(items, items, torch.arange(len(keys)), torch.tensor(keys), known, 1.0)
    rows = []
    for i, key in enumerate(keys):
        refused = {key, *known[i].tolist()}
        rows.append(math.log(math.e + sum(other not in refused for other in keys)) - 1)
    assert got.item() == pytest.approx(sum(rows) / len(rows), abs=1e-5)


def test_explicit_negatives_stand_behind_the_positives() -> None:
    """Two queries, two positives, one hard negative: it is a column for both."""
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    loss = info_nce(items[:2], items, torch.arange(2), torch.arange(3), NOTHING_KNOWN[:2], 1.0)
    expected = (math.log(1 + math.exp(-1) + math.exp(-0.4)) + math.log(1 + math.exp(-1) + math.exp(-0.2))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_many_queries_may_want_one_item() -> None:
    """The RL stage: G reasonings of a query share its item, and both count."""
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.0, 1.0]])
    loss = info_nce(queries, torch.eye(2), torch.tensor([0, 0, 1, 1]), torch.arange(2), NOTHING_KNOWN, 1.0)
    rows = [math.log(1 + math.exp(d)) for d in (-1.0, 0.2, -1.0, -1.0)]
    assert loss.item() == pytest.approx(sum(rows) / 4, abs=1e-6)


def test_parts_of_a_batch_add_up_to_its_sft() -> None:
    log_probs = torch.log(torch.rand(4, 6, generator=torch.manual_seed(0)))
    scored = torch.rand(4, 6, generator=torch.manual_seed(1)) < 0.5
    whole = sft(log_probs, scored)
    count = scored.sum()
    parts = sum(sft(log_probs[rows], scored[rows], count).item() for rows in ([0], [1, 3], [2]))
    assert parts == pytest.approx(whole.item(), abs=1e-6)
    per_sequence = sft(log_probs, scored, torch.tensor(4))  # the paper's: a sum over tokens, a mean over sequences
    assert per_sequence.item() == pytest.approx(-(log_probs * scored).sum(1).mean().item(), abs=1e-6)


TITLES = ["red wool coat", "blue linen shirt", "green tea", "black coffee", "iron kettle", "oak chair", "silk scarf"]
REASONINGS = ["coat, wool", "", "leaf", "bean, roast, dark", "boil", "seat", "neck, soft"]


def joint_gradient(rows: list[int], model: ReasoningEmbedder) -> torch.Tensor:
    """Gradient of all three losses together, averaged over ranks as data-parallel training does."""
    renderer = model.renderer
    prompts = [renderer.query_prompt(TITLES[-1 - i]) for i in rows]
    ids = [renderer.query_ids(TITLES[-1 - i], REASONINGS[i]) for i in rows]
    queries = pad(ids, [(len(p), len(row)) for p, row in zip(prompts, ids, strict=True)])
    encoded, items = model(queries), model.embed(pad([renderer.item_ids(TITLES[i]) for i in rows]))
    item_keys = torch.tensor([i % 5 for i in rows])  # 0 and 5, 1 and 6 are the same product
    known = torch.tensor([[(i + 1) % 5] for i in rows])
    assert encoded.log_probs is not None
    old = encoded.log_probs.detach() + 0.1 * torch.tensor([[float(i % 3 - 1)] for i in rows])
    advantages = torch.tensor([float(i - 3) for i in rows])
    assert queries.scored is not None
    loss = (
        info_nce(encoded.embeddings, items, torch.arange(len(rows)), item_keys, known, 0.05)
        + 0.3 * sft(encoded.log_probs, queries.scored)
        + 0.7 * policy_gradient(encoded.log_probs, old, advantages, token_weights(queries.scored))
    )
    model.zero_grad()
    loss.backward()
    gradient = gradient_of(model)
    if dist.is_initialized():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return gradient


def tiny_model() -> ReasoningEmbedder:
    tokenizer = train_tokenizer([f" {text}" for text in TITLES + REASONINGS], 400)
    config = ModelConfig(hidden_size=32, intermediate_size=48, layers=2, heads=2, kv_heads=1)
    return ReasoningEmbedder.from_config(config, tokenizer, seed=5)


def run_rank(rank: int, shares: list[list[int]]) -> torch.Tensor:
    assert gather_rows(torch.tensor(shares[rank])).tolist() == shares[0] + shares[1]
    return joint_gradient(shares[rank], tiny_model())


@pytest.mark.parametrize("shares", [[[0, 1, 2], [3, 4, 5]], [[0, 1, 2, 3, 4], [5, 6]]], ids=["even", "uneven"])
def test_two_ranks_give_the_gradient_of_one(two_ranks: TwoRanks, shares: list[list[int]]) -> None:
    two = two_ranks.run(run_rank, shares)
    one = joint_gradient(shares[0] + shares[1], tiny_model())
    assert relative_error(two, one) < 1e-5
    assert one.norm().item() > 0.1
