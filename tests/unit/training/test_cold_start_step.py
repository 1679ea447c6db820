"""The terms of stage 1's loss: without thoughts, SFT alone, thoughts as positives; on one rank and on two."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from lrem.config import ColdStartConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad
from lrem.training.cold_start_step import (
    ColdStartBatch,
    accumulate_gradients,
    accumulate_sft_gradients,
    collate,
)
from lrem.training.losses import info_nce, sft
from tests.unit.training.cold_start_batch import KNOWN, QUERIES, REASONINGS, make_batch, make_rows, plain_info_nce
from tests.unit.training.gradients import gradient_of, relative_error
from tests.unit.training.two_ranks import TwoRanks

CPU = torch.device("cpu")
SETTINGS = ColdStartConfig(empty_weight=0.25, sft_weight=0.3, chunk_tokens=40, graph_tokens=60)
SHARES = [[0, 1, 3, 6], [2, 4, 5]]  # 2 and 5 have empty thoughts


def step(
    model: ReasoningEmbedder, batch: ColdStartBatch, accumulate: Any = accumulate_gradients
) -> tuple[dict[str, float], torch.Tensor]:
    """Return the values of a step and its gradient."""
    model.zero_grad()
    values = accumulate(batch, SETTINGS, model, lambda loss, last: loss.backward(), CPU)
    return values, gradient_of(model)


def as_items(model: ReasoningEmbedder, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return direct rows whose thoughts are items; the texts of rows 1 and 4 are the same."""
    texts = ["wool, winter", "linen", "", "shirt, scarf, hat", "linen", "", "winter, coat"]
    return [
        row
        | {"query_ids": model.renderer.query_ids(QUERIES[row["query_key"]], None)}
        | {"thought_ids": model.renderer.item_ids(text) if (text := texts[row["query_key"]]) else None}
        for row in rows
    ]


def batch_of(model: ReasoningEmbedder, kind: str, share: list[int]) -> ColdStartBatch:
    rows = [make_rows(model)[i] for i in share]
    if kind == "direct":
        return collate(as_items(model, rows), KNOWN, with_sft=False)
    return collate(rows, KNOWN, without_thought=kind == "joint")


KINDS = {"joint": accumulate_gradients, "sft": accumulate_sft_gradients, "direct": accumulate_gradients}


def run_rank(rank: int, folder: str) -> dict[str, tuple[dict[str, float], torch.Tensor]]:
    """Return each kind's values, and its gradient as data-parallel training averages it."""
    model, results = ReasoningEmbedder.load(folder), {}
    for kind, accumulate in KINDS.items():
        values, gradient = step(model, batch_of(model, kind, SHARES[rank]), accumulate)
        dist.all_reduce(gradient)
        results[kind] = values, gradient / 2
    return results


def test_two_ranks_give_the_loss_and_gradient_of_one(two_ranks: TwoRanks, tiny_folder: Any) -> None:
    model = ReasoningEmbedder.load(tiny_folder)
    for kind, (values, gradient) in two_ranks.run(run_rank, str(tiny_folder)).items():
        expected, whole = step(model, batch_of(model, kind, SHARES[0] + SHARES[1]), KINDS[kind])
        assert values == pytest.approx(expected, rel=1e-5), kind
        assert relative_error(gradient, whole) < 1e-5, kind
        assert whole.norm() > 0.1, kind


def test_queries_are_embedded_without_their_thoughts_too(tiny: ReasoningEmbedder) -> None:
    batch = make_batch(tiny, without_thought=True)
    assert batch.embedded_without is not None
    for query, place in zip(QUERIES, batch.embedded_without, strict=True):
        assert batch.query_side[place] == tiny.renderer.query_ids(query, "")
    assert len(batch.without_thought) == sum(map(bool, REASONINGS))  # the others are embedded so already
    values, _ = step(tiny, batch)
    with torch.no_grad():
        empty = tiny.embed(pad([tiny.renderer.query_ids(query, "") for query in QUERIES]))
        expected = plain_info_nce(empty, tiny.embed(pad(batch.items)), batch, SETTINGS)
    assert values["info_nce_empty"] == pytest.approx(expected.item(), rel=1e-5)
    assert "info_nce_empty" not in step(tiny, make_batch(tiny))[0]


def test_a_weight_of_zero_changes_nothing(tiny: ReasoningEmbedder) -> None:
    settings = SETTINGS.model_copy(update={"empty_weight": 0.0})
    gradients = []
    for batch in (make_batch(tiny, without_thought=True), make_batch(tiny)):
        tiny.zero_grad()
        accumulate_gradients(batch, settings, tiny, lambda loss, last: loss.backward(), CPU)
        gradients.append(gradient_of(tiny))
    assert relative_error(*gradients) < 1e-5


def test_sft_alone_is_the_mean_over_tokens_whatever_its_weight(tiny: ReasoningEmbedder) -> None:
    batch = make_batch(tiny)._replace(items=[], item_keys=[])
    values, gradient = step(tiny, batch, accumulate_sft_gradients)
    tiny.zero_grad()
    sequences = pad(batch.queries, batch.scored_spans)
    log_probs = tiny(sequences).log_probs
    assert log_probs is not None
    assert sequences.scored is not None
    loss = sft(log_probs, sequences.scored)
    loss.backward()
    assert values == {"sft": pytest.approx(loss.item(), rel=1e-5)}
    assert relative_error(gradient, gradient_of(tiny)) < 1e-5


def test_rows_without_sft_do_not_count_in_its_mean(tiny: ReasoningEmbedder) -> None:
    rows = [row | {"scored": i != 3} for i, row in enumerate(make_rows(tiny))]
    scored = [row for i, row in enumerate(make_rows(tiny)) if i != 3]
    for mean in ("token", "sequence"):
        settings = SETTINGS.model_copy(update={"sft_mean": mean})
        values = [
            accumulate_gradients(collate(some, KNOWN), settings, tiny, lambda loss, last: loss.backward(), CPU)["sft"]
            for some in (rows, scored)
        ]
        assert values[0] == pytest.approx(values[1], rel=1e-5), mean


def test_the_text_of_a_thought_is_a_positive_and_never_a_negative_of_its_query(tiny: ReasoningEmbedder) -> None:
    batch = batch_of(tiny, "direct", [*range(7)])
    assert batch.thought_pairs == [(0, 9), (1, 10), (3, 11), (4, 12), (6, 13)]  # after 7 positives and 2 negatives
    values, _ = step(tiny, batch)
    with torch.no_grad():
        queries, items = tiny.embed(pad(batch.queries)), tiny.embed(pad(batch.items))
    allowed = torch.ones(7, len(items), dtype=torch.bool)
    keys = torch.tensor(batch.item_keys)
    for i in range(7):
        allowed[i] = ~torch.isin(keys, torch.tensor([*KNOWN.of(i), i % 5]))
    for i, place in batch.thought_pairs:
        allowed[i, place] = False
    allowed[1, 12] = allowed[4, 10] = False  # the same text
    logits = queries @ items.T / SETTINGS.temperature
    losses = []
    for i, place in [*((i, i) for i in range(7)), *batch.thought_pairs]:
        candidates = torch.cat([logits[i, [place]], logits[i, allowed[i]]])
        losses.append(candidates.logsumexp(0) - logits[i, place])
    assert values == {"info_nce": pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)}
    without = collate([row | {"thought_ids": None} for row in make_rows(tiny)], KNOWN, with_sft=False)
    assert (len(without.items), without.thought_pairs) == (9, ())
    plain = info_nce(queries, items[:9], torch.arange(7), keys[:9], torch.from_numpy(without.known), 0.03)
    assert plain.item() != pytest.approx(values["info_nce"])
