"""DeepSpeed under Ray Train against plain PyTorch: two ranks take the steps that one process takes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray.data
import torch

from lrem.config import ColdStartConfig, Config, load_config
from lrem.losses import info_nce, sft
from lrem.model import ReasoningEmbedder
from ray_apps.cluster import cluster
from ray_apps.cold_start import collate, render, step
from ray_apps.training import fit, full_state, make_engine, shard_rows

ROWS = [
    {
        "query": f"{colour} {kind}",
        "reasoning": f"{material}, {kind}",
        "title": f"{colour} {material} {kind}",
        "query_key": i,
        "item_key": i % 13,
    }
    for i, (colour, material, kind) in enumerate(
        (c, m, k) for c in ("red", "blue") for m in ("wool", "linen", "silk") for k in ("coat", "shirt", "hat")
    )
]
STAGE = ColdStartConfig.model_validate(
    {"batch_size": 9, "sft_weight": 0.5, "optim": {"lr": 1e-3, "warmup": 0.0, "weight_decay": 0.01}}
)
STEPS = 4


def loop(settings: dict[str, Any]) -> None:
    """STEPS updates on the rank's whole shard."""
    stage = ColdStartConfig.model_validate(settings["stage"])
    model = ReasoningEmbedder.load(settings["start"])
    rows = [render(model.renderer, row, "joint") for row in shard_rows()]
    engine = make_engine(model, stage.optim, len(rows), STEPS + 1)
    losses = [step(engine, rows, stage)[0] for _ in range(STEPS)]
    state = full_state(engine)
    if torch.distributed.get_rank() == 0:
        torch.save((losses, state), settings["out"])


def alone(folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The same updates by torch.optim.AdamW on the union batch, in this process."""
    from transformers import get_cosine_schedule_with_warmup

    model = ReasoningEmbedder.load(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=STAGE.optim.lr, weight_decay=STAGE.optim.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, STEPS + 1)
    queries, items, query_keys, item_keys = collate([render(model.renderer, row, "joint") for row in ROWS])
    losses = []
    for _ in range(STEPS):
        encoded, embeddings = model(queries, items)
        rows = torch.arange(len(ROWS))
        contrast = info_nce(encoded.embeddings, embeddings, rows, query_keys, item_keys, STAGE.temperature)
        imitation = sft(encoded.log_probs, queries.scored)
        losses.append({"info_nce": contrast.item(), "sft": imitation.item()})
        optimizer.zero_grad()
        (contrast + STAGE.sft_weight * imitation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), STAGE.optim.clip)
        optimizer.step()
        schedule.step()
    return losses, model.lm.state_dict()


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_step_like_one_process(tiny_folder: Path, tmp_path: Path, zero_stage: int) -> None:
    config: Config = load_config(None, ["ray.num_cpus=6", f"run_dir={tmp_path}"])
    optim = STAGE.optim.model_copy(update={"zero_stage": zero_stage})
    stage = STAGE.model_copy(update={"optim": optim})
    out = tmp_path / "state.pt"
    settings = {"stage": stage.model_dump(mode="json"), "start": str(tiny_folder), "out": str(out)}
    with cluster(config):
        fit(loop, config, settings, ray.data.from_arrow(pa.Table.from_pylist(ROWS)), 2, "parity")
    losses, state = torch.load(out)
    expected_losses, expected = alone(tiny_folder)
    start = ReasoningEmbedder.load(tiny_folder).lm.state_dict()
    for name, tensor in expected.items():
        moved = (tensor - start[name]).norm()
        assert moved > 0, name
        assert ((state[name] - tensor).norm() / moved).item() < 1e-2, name
    for logged, wanted in zip(losses, expected_losses, strict=True):
        assert logged["info_nce"] == pytest.approx(wanted["info_nce"], rel=1e-3)
        assert logged["sft"] == pytest.approx(wanted["sft"], rel=1e-3)
