"""DeepSpeed on two gloo ranks against plain PyTorch in one process: equal gradients and steps at every ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from lrem.config import ColdStartConfig
from lrem.modeling.freezing import freeze_lower_layers
from lrem.modeling.model import ReasoningEmbedder
from lrem.training.batching import chunk_by_length
from lrem.training.cold_start_step import accumulate_gradients, collate
from lrem.training.gradcache import first_kept_chunk
from lrem.training.gradient_observer import GradNormObserver
from lrem.training.schedule import cosine_with_warmup
from tests.unit.training.cold_start_batch import KNOWN, make_batch, make_rows, plain_gradient
from tests.unit.training.gradients import full_gradient, gradient_of, relative_error
from tests.unit.training.two_ranks import TwoRanks, import_deepspeed

SHARES = [[0, 1, 2, 3], [4, 5, 6]]
TERMS = {"info_nce": (1.0, 0.0), "sft": (0.0, 1.0), "both": (1.0, 0.3)}  # InfoNCE with and without thoughts
CHUNKS: dict[str, tuple[int, int | None]] = {
    "whole": (10**6, None),
    "bucketed": (40, None),
    "cached": (40, 1),
    "partly-cached": (40, 60),  # alone, one rank would keep more graphs than the other
    "row-by-row": (1, 1),  # eight forwards on one rank, thirteen on the other: stand-ins make them equal
}
STEPS = 3


def stage(zero_stage: int, terms: str, chunks: str) -> ColdStartConfig:
    return ColdStartConfig.model_validate(
        {
            "info_nce_weight": TERMS[terms][0],
            "sft_weight": TERMS[terms][1],
            "temperature": 0.05,
            "chunk_tokens": CHUNKS[chunks][0],
            "graph_tokens": CHUNKS[chunks][1],
            "optim": {"zero_stage": zero_stage, "lr": 1e-3, "warmup": 0.0, "weight_decay": 0.01},
        }
    )


def run_rank(rank: int, zero_stage: int, start: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Run every combination of terms and chunks from the same weights, then STEPS updates."""
    from ray_apps.training.deepspeed_engine import engine_backward, full_state, make_engine, update

    import_deepspeed()
    rows = [make_rows(ReasoningEmbedder.load(start))[i] for i in SHARES[rank]]
    results: dict[str, Any] = {}
    for terms in TERMS:
        for chunks in CHUNKS:
            settings, observer = stage(zero_stage, terms, chunks), GradNormObserver()
            engine = make_engine(ReasoningEmbedder.load(start), settings.optim, 4, STEPS + 1)
            engine.train()
            batch = collate(rows, KNOWN, without_thought=True)
            values = accumulate_gradients(batch, settings, engine, engine_backward(engine), engine.device, observer)
            gradient = full_gradient(engine)
            values |= observer.norms(engine.device)
            results[f"{terms} {chunks}"] = values | {"grad_norm": update(engine)}, gradient
            engine.destroy()
    settings = stage(zero_stage, "both", "cached")
    engine = make_engine(ReasoningEmbedder.load(start), settings.optim, 4, STEPS + 1)
    batch = collate(rows, KNOWN, without_thought=True)
    for _ in range(STEPS):
        accumulate_gradients(batch, settings, engine, engine_backward(engine), engine.device)
        engine.step()
    state = full_state(engine)
    engine.destroy()
    return results, state


def trained_alone(folder: Path, settings: ColdStartConfig, freeze_layers: int = 0) -> dict[str, torch.Tensor]:
    """Return the weights after the same updates by torch.optim.AdamW on the whole batch, in this process."""
    model = ReasoningEmbedder.load(folder)
    if freeze_layers:
        freeze_lower_layers(model, freeze_layers)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=settings.optim.lr, weight_decay=settings.optim.weight_decay)
    schedule = LambdaLR(optimizer, lambda step: cosine_with_warmup(step, 1, STEPS + 1))
    batch = make_batch(model, without_thought=True)
    for _ in range(STEPS):
        plain_gradient(model, batch, settings)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optim.clip)
        optimizer.step()
        schedule.step()
    return {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}


def one_process(model: ReasoningEmbedder, terms: str) -> dict[str, float]:
    """Return the losses and their gradient norms on the whole batch, in one chunk per side."""
    cpu, observer = torch.device("cpu"), GradNormObserver()
    batch, settings = make_batch(model, without_thought=True), stage(0, terms, "whole")
    values = accumulate_gradients(batch, settings, model, lambda loss, last: loss.backward(), cpu, observer)
    return values | observer.norms(cpu)


def kept_alone(model: ReasoningEmbedder, tokens: int, graph_tokens: int) -> list[int]:
    """Return how many chunks each rank would forward twice if it decided for itself."""
    rows = make_rows(model)
    batches = [collate([rows[i] for i in share], KNOWN, without_thought=True) for share in SHARES]
    sides = [[[len(row) for row in side] for side in (batch.query_side, batch.items)] for batch in batches]
    counts = [max(len(chunk_by_length(rank[side], tokens)) for rank in sides) for side in (0, 1)]
    kept = []
    for rank in sides:
        groups = [(rank[side], group) for side in (0, 1) for group in chunk_by_length(rank[side], tokens, counts[side])]
        kept.append(
            first_kept_chunk([len(group) * max(lengths[i] for i in group) for lengths, group in groups], graph_tokens)
        )
    return kept


def test_partly_cached_is_a_test(tiny: ReasoningEmbedder) -> None:
    """Each rank alone would keep another number of graphs, and they would meet in different collectives."""
    one, other = kept_alone(tiny, *CHUNKS["partly-cached"])  # type: ignore[misc]
    assert one != other


@pytest.mark.parametrize("zero_stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 3)), 2])
def test_two_ranks_are_one_process(two_ranks: TwoRanks, tiny_folder: Path, zero_stage: int) -> None:
    """Gradients of each loss and of both, with every way of chunking, to 1e-5; then weights after three updates."""
    results, state = two_ranks.run(run_rank, zero_stage, str(tiny_folder))
    assert len(results) == len(TERMS) * len(CHUNKS)
    for name, (values, gradient) in results.items():
        terms, chunks = name.split()
        model = ReasoningEmbedder.load(tiny_folder)
        expected = plain_gradient(model, make_batch(model, without_thought=True), stage(zero_stage, terms, chunks))
        assert gradient_of(model).shape == gradient.shape
        assert relative_error(gradient, expected) < 1e-5, name
        assert values["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-4), name
        assert values == pytest.approx(one_process(model, terms) | {"grad_norm": values["grad_norm"]}, rel=1e-4), name
    start = ReasoningEmbedder.load(tiny_folder).lm.state_dict()
    for name, tensor in trained_alone(tiny_folder, stage(zero_stage, "both", "whole")).items():
        moved = (tensor - start[name]).norm()
        assert moved > 0, name
        assert ((state[name] - tensor).norm() / moved).item() < 1e-2, name


def train_frozen(rank: int, zero_stage: int, start: str, folder: str) -> tuple[dict[str, torch.Tensor], bool]:
    """Return the weights after STEPS frozen updates, and whether a run restored from there takes the same next one."""
    from ray_apps.training.deepspeed_engine import engine_backward, full_state, make_engine, update

    import_deepspeed()
    rows = [make_rows(ReasoningEmbedder.load(start))[i] for i in SHARES[rank]]
    settings, ends = stage(zero_stage, "both", "cached"), []
    for resumed in (False, True):
        model = ReasoningEmbedder.load(start)
        freeze_lower_layers(model, 1)
        engine = make_engine(model, settings.optim, 4, STEPS + 1)
        if resumed:
            engine.load_checkpoint(folder, tag="engine")
        for step in range(STEPS if resumed else 0, STEPS + 1):
            if step == STEPS and not resumed:
                trained = full_state(engine)
                engine.save_checkpoint(folder, tag="engine", save_latest=False)
            batch = collate(rows, KNOWN, without_thought=True)
            accumulate_gradients(batch, settings, engine, engine_backward(engine), engine.device)
            update(engine)
        ends.append(full_state(engine))
        engine.destroy()
    return trained, all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.parametrize("zero_stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 3)), 2])
def test_frozen_layers_on_two_ranks(two_ranks: TwoRanks, tiny_folder: Path, tmp_path: Path, zero_stage: int) -> None:
    """The weights of one process that freezes likewise, under an ordinary model's names; a resumed run is the run."""
    state, resumed_alike = two_ranks.run(train_frozen, zero_stage, str(tiny_folder), str(tmp_path))
    start = ReasoningEmbedder.load(tiny_folder).lm.state_dict()
    assert state.keys() == start.keys()
    for name, tensor in trained_alone(tiny_folder, stage(zero_stage, "both", "whole"), freeze_layers=1).items():
        moved = (tensor - start[name]).norm()
        if moved == 0:
            assert torch.equal(state[name], start[name]), name
        else:
            assert ((state[name] - tensor).norm() / moved).item() < 1e-2, name
    assert resumed_alike
