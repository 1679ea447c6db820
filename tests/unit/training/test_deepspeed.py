"""DeepSpeed on two gloo ranks against plain PyTorch in one process: the same gradients, the same steps, any ZeRO."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lrem.config import ColdStartConfig
from lrem.data.known_positives import KnownPositives
from lrem.modeling.model import ReasoningEmbedder
from lrem.training.batching import chunk_by_length
from lrem.training.cold_start_step import accumulate_gradients, collate, state_gradient_norms
from lrem.training.gradcache import first_kept_chunk
from tests.unit.training.test_gradcache import gradient_of, make_rows, plain_gradient

KNOWN = KnownPositives(np.array([0, 1, 2, 3, 4, 5, 6, 6]), np.array([0, 1, 2, 3, 4, 0, 1, 3]))
SHARES = [[0, 1, 2, 3], [4, 5, 6]]
TERMS = {"info_nce": (1.0, 0.0), "sft": (0.0, 1.0), "both": (1.0, 0.3)}
CHUNKS: dict[str, tuple[int, int | None]] = {
    "whole": (10**6, None),
    "bucketed": (40, None),
    "cached": (40, 1),
    "partly-cached": (40, 40),  # alone, one rank would keep more graphs than the other
    "row-by-row": (1, 1),  # seven forwards on one rank, ten on the other: stand-ins keep them alike
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


def full_gradient(engine: Any) -> torch.Tensor:
    """The gradient that the optimiser is about to use, whole, on every rank."""
    from deepspeed.utils import safe_get_full_grad

    return torch.cat([safe_get_full_grad(p).flatten().float().cpu() for p in engine.module.parameters()])


def run_rank(rank: int, zero_stage: int, start: str, folder: str) -> None:
    """Every combination of terms and chunks from the same weights, then STEPS updates."""
    from ray_apps.training.deepspeed_engine import engine_backward, full_state, make_engine, update

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = [make_rows(ReasoningEmbedder.load(start))[i] for i in SHARES[rank]]
    found: dict[str, Any] = {}
    for terms in TERMS:
        for how in CHUNKS:
            settings = stage(zero_stage, terms, how)
            engine = make_engine(ReasoningEmbedder.load(start), settings.optim, 4, STEPS + 1)
            engine.train()
            values = accumulate_gradients(
                collate(rows, KNOWN), settings, engine, engine_backward(engine), engine.device
            )
            norms = state_gradient_norms(engine.module.state_gradients, engine.device)
            gradient = full_gradient(engine)
            found[f"{terms} {how}"] = values | norms | {"grad_norm": update(engine)}, gradient
            engine.destroy()
    settings = stage(zero_stage, "both", "cached")
    engine = make_engine(ReasoningEmbedder.load(start), settings.optim, 4, STEPS + 1)
    for _ in range(STEPS):
        accumulate_gradients(collate(rows, KNOWN), settings, engine, engine_backward(engine), engine.device)
        engine.step()
    state = full_state(engine)
    if rank == 0:
        torch.save((found, state), f"{folder}/found.pt")
    dist.destroy_process_group()


def alone(folder: Path, settings: ColdStartConfig) -> dict[str, torch.Tensor]:
    """The same updates by torch.optim.AdamW on the union batch, in this process."""
    from transformers import get_cosine_schedule_with_warmup

    model = ReasoningEmbedder.load(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.optim.lr, weight_decay=settings.optim.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, STEPS + 1)
    batch = collate(make_rows(model), KNOWN)
    for _ in range(STEPS):
        plain_gradient(model, batch, settings)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optim.clip)
        optimizer.step()
        schedule.step()
    return {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}


def one_process(model: ReasoningEmbedder, terms: str) -> dict[str, float]:
    """Losses and their state norms on the union batch, in one chunk a side."""
    model.state_gradients.clear()
    batch = collate(make_rows(model), KNOWN)
    cpu = torch.device("cpu")
    values = accumulate_gradients(batch, stage(0, terms, "whole"), model, lambda loss, last: loss.backward(), cpu)
    return values | state_gradient_norms(model.state_gradients, cpu)


def kept_alone(model: ReasoningEmbedder, tokens: int, graph_tokens: int) -> list[int]:
    """How many chunks each rank has forwarded again if it decides for itself."""
    rows = make_rows(model)
    batches = [collate([rows[i] for i in share], KNOWN) for share in SHARES]
    sides = [[[len(row) for row in side] for side in (batch.queries, batch.items)] for batch in batches]
    counts = [max(len(chunk_by_length(rank[side], tokens)) for rank in sides) for side in (0, 1)]
    kept = []
    for rank in sides:
        groups = [(rank[side], group) for side in (0, 1) for group in chunk_by_length(rank[side], tokens, counts[side])]
        kept.append(
            first_kept_chunk([len(group) * max(lengths[i] for i in group) for lengths, group in groups], graph_tokens)
        )
    return kept


def test_partly_cached_is_a_test(tiny: ReasoningEmbedder) -> None:
    """By themselves the two ranks would keep different numbers of graphs, and meet in different collectives."""
    one, other = kept_alone(tiny, *CHUNKS["partly-cached"])  # type: ignore[misc]
    assert one != other


@pytest.mark.parametrize("zero_stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 2)), 3])
def test_two_ranks_are_one_process(tiny_folder: Path, tmp_path: Path, zero_stage: int) -> None:
    """Gradients of each loss and of both, with every way of chunking, to 1e-5; then weights after three updates."""
    mp.spawn(run_rank, args=(zero_stage, str(tiny_folder), str(tmp_path)), nprocs=2)
    found, state = torch.load(tmp_path / "found.pt")
    for name, (values, gradient) in found.items():
        terms, how = name.split()
        model = ReasoningEmbedder.load(tiny_folder)
        expected = plain_gradient(model, collate(make_rows(model), KNOWN), stage(zero_stage, terms, how))
        assert gradient_of(model).shape == gradient.shape
        assert ((gradient - expected).norm() / expected.norm()).item() < 1e-5, name
        assert values["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-4), name
        assert values == pytest.approx(one_process(model, terms) | {"grad_norm": values["grad_norm"]}, rel=1e-4), name
    start = ReasoningEmbedder.load(tiny_folder).lm.state_dict()
    for name, tensor in alone(tiny_folder, stage(zero_stage, "both", "whole")).items():
        moved = (tensor - start[name]).norm()
        assert moved > 0, name
        assert ((state[name] - tensor).norm() / moved).item() < 1e-2, name
