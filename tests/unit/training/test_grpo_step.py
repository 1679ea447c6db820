"""A step of stage 2 against its definition: plain forwards, one loss, one backward; chunked; on two ranks; any ZeRO."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lrem.modeling.model import ReasoningEmbedder
from lrem.training.grpo_step import Candidates, accumulate_gradients
from tests.unit.training.gradients import full_gradient, gradient_of, relative_error
from tests.unit.training.grpo_batch import (
    CHUNKS,
    GROUP_SIZE,
    TEMPERATURE,
    VARIANTS,
    load_reference,
    make_candidates,
    make_grpo_batch,
    make_settings,
    plain_step,
)
from tests.unit.training.two_ranks import TwoRanks, import_deepspeed

CPU = torch.device("cpu")
SHARES = [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_is_its_definition(embedder_folder: Path, variant: str, chunks: str) -> None:
    model, reference = ReasoningEmbedder.load(embedder_folder), load_reference(embedder_folder)
    expected = plain_step(model, reference, variant)
    gradient = gradient_of(model)
    model.zero_grad()
    step = accumulate_gradients(
        make_grpo_batch(model, [0, 1, 2, 3, 4]),
        make_settings(variant, chunks),
        16,
        24,
        lambda sequences: model(sequences, TEMPERATURE),
        lambda loss, last: loss.backward(),
        CPU,
        make_candidates(model),
        (lambda sequences: reference(sequences, TEMPERATURE)) if variant == "kl" else None,
    )
    assert step.values == pytest.approx(step.values | expected, rel=1e-4)
    assert gradient.norm() > 0.01
    assert relative_error(gradient_of(model), gradient) < 1e-5


def test_malformed_and_overlong_rollouts(tiny_folder: Path) -> None:
    """Malformed: no reward at all, and a forced close that is not scored. Overlong: no length reward."""
    model = ReasoningEmbedder.load(tiny_folder)
    batch = make_grpo_batch(model, [1, 3])
    renderer, malformed = model.renderer, batch.groups[1].completions[1]
    assert malformed[-2:] == [renderer.close, renderer.emb]
    assert batch.groups[1].sampled[1] == len(malformed) - 2 == int(batch.sampled[GROUP_SIZE + 1].sum())
    further, backward = make_candidates(model), lambda loss, last: loss.backward()
    step = accumulate_gradients(batch, make_settings("token"), 16, 24, model, backward, CPU, further)
    bad, overlong = GROUP_SIZE + 1, 2
    assert step.rewards[bad].item() == 0
    assert {name: part[bad].item() for name, part in step.parts.items()} == {"format": 0, "length": 0, "accuracy": 0}
    assert (step.parts["format"][overlong].item(), step.parts["length"][overlong].item()) == (1, 0)
    assert step.parts["accuracy"][overlong].item() > 0 or step.ranks[overlong] == step.values["candidates"]
    assert step.values["format_rate"] == pytest.approx(5 / 6)


def run_rank(rank: int, zero_stage: int, start: str) -> dict[str, Any]:
    """Run this rank's share of every variant and chunking through a DeepSpeed engine."""
    from ray_apps.training.deepspeed_engine import engine_backward, make_engine

    import_deepspeed()
    reference, results = load_reference(start), {}
    for variant in VARIANTS:
        for chunks in CHUNKS:
            rl = make_settings(variant, chunks, optim={"zero_stage": zero_stage, "lr": 1e-3})
            further = make_candidates(ReasoningEmbedder.load(start))
            engine = make_engine(ReasoningEmbedder.load(start), rl.optim, 2, 2)
            step = accumulate_gradients(
                make_grpo_batch(engine.module, SHARES[rank]),
                rl,
                16,
                24,
                lambda sequences, engine=engine: engine(sequences, TEMPERATURE),
                engine_backward(engine),
                engine.device,
                Candidates(further.embeddings[rank::2], further.keys[rank::2]),
                (lambda sequences: reference(sequences, TEMPERATURE)) if variant == "kl" else None,
            )
            results[f"{variant}/{chunks}"] = step.values, full_gradient(engine)
            engine.destroy()
    return results


@pytest.mark.parametrize("zero_stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 2)), 3])
def test_two_ranks_are_one(two_ranks: TwoRanks, tiny_folder: Path, zero_stage: int) -> None:
    """Two queries on one rank and three on the other: the gradient and the values of the whole batch."""
    results = two_ranks.run(run_rank, zero_stage, str(tiny_folder))
    assert len(results) == len(VARIANTS) * len(CHUNKS)
    for name, (values, gradient) in results.items():
        model = ReasoningEmbedder.load(tiny_folder)
        expected = plain_step(model, load_reference(tiny_folder), name.split("/")[0])
        assert values == pytest.approx(values | expected, rel=1e-4), name
        assert relative_error(gradient, gradient_of(model)) < 1e-5, name
