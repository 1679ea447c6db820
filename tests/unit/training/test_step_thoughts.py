"""Own thoughts written by DeepSpeed engines on two ranks: from the right weights, and the same after a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrem.config import ColdStartConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.training.cold_start_step import accumulate_gradients, collate
from lrem.training.distributed import gather_objects
from tests.unit.training.cold_start_batch import KNOWN, QUERIES, make_rows
from tests.unit.training.two_ranks import TwoRanks, import_deepspeed

STEPS, EVERY = 8, 3
SHARES = [[0, 1, 3, 6], [4, 5]]


class Shard:
    """The same rows at every step."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def rows_of(self, step: int) -> int:
        return step

    def read(self, step: int) -> list[dict[str, Any]]:
        return self.rows


def run_rank(rank: int, zero_stage: int, folder: str) -> dict[str, Any]:
    """Train STEPS steps on own thoughts; return both ranks' sequences, and what a run resumed at step EVERY writes."""
    from ray_apps.training.deepspeed_engine import engine_backward, make_engine
    from ray_apps.training.dev_set import own_thoughts
    from ray_apps.training.step_thoughts import StepThoughts

    import_deepspeed()
    settings = ColdStartConfig.model_validate(
        {
            "thoughts": {"teacher": 0, "own": 1, "corrupted": 0, "refresh": 2},
            "chunk_tokens": 40,
            "optim": {"zero_stage": zero_stage, "lr": 1e-2},
        }
    )
    rows: Any = [make_rows(ReasoningEmbedder.load(folder))[i] for i in SHARES[rank]]
    shard: Any = Shard(rows)
    engine = make_engine(ReasoningEmbedder.load(folder), settings.optim, 4, STEPS)
    engine.train()
    greedy = own_thoughts(engine, QUERIES)
    thoughts, resumed = (StepThoughts(shard, settings.thoughts, 0, engine, STEPS, EVERY) for _ in range(2))
    written, again = [], []
    for step in range(STEPS):
        if step == EVERY:
            again = [row["query_ids"] for row in resumed.of(step, rows)]
        replaced = thoughts.of(step, rows)
        written.append([row["query_ids"] for row in replaced])
        batch = collate(replaced, KNOWN, without_thought=True)
        values = accumulate_gradients(batch, settings, engine, engine_backward(engine), engine.device)
        assert np.isfinite([*values.values()]).all()
        engine.step()
    engine.destroy()
    return {"greedy": greedy, "written": gather_objects(written), "again": gather_objects(again)}


@pytest.mark.parametrize("zero_stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_engines_write_their_own_thoughts(two_ranks: TwoRanks, tiny_folder: Path, zero_stage: int) -> None:
    result = two_ranks.run(run_rank, zero_stage, str(tiny_folder))
    model = ReasoningEmbedder.load(tiny_folder)
    assert result["greedy"] == model.reason(QUERIES)
    taught = make_rows(model)
    for share, steps, again in zip(SHARES, result["written"], result["again"], strict=True):
        teacher = [taught[i]["query_ids"] for i in share]
        assert steps[0] == steps[1] == teacher  # before the first refresh
        for step in range(2, STEPS):
            for i, ours, theirs in zip(share, steps[step], teacher, strict=True):
                assert (ours == theirs) == (QUERIES[i] == "coat"), (step, i)  # its teacher wrote nothing
        assert again == steps[EVERY]  # a checkpoint is where own thoughts are sampled afresh
