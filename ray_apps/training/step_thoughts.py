"""The thoughts of stage 1's rows, step by step; the model's own are sampled for several steps at once.

They are sampled afresh every `thoughts.refresh` steps, and after every checkpoint: so a resumed run, which has the
checkpoint's weights and nothing else, samples what the uninterrupted run did.
"""

from typing import Any

import numpy as np

from lrem.config import ThoughtsConfig
from lrem.training.distributed import rank
from lrem.training.thoughts import draw_kinds, replace_thoughts, write_thoughts
from ray_apps.training.deepspeed_engine import TrainingEngine
from ray_apps.training.row_shards import Row, RowShard


class StepThoughts:
    """One rank's draws and own thoughts; every rank must call `of` at every joint step.

    Args:
        steps: of the whole run. checkpoint_every: steps between checkpoints.
    """

    def __init__(
        self, shard: RowShard, mix: ThoughtsConfig, seed: int, engine: TrainingEngine, steps: int, checkpoint_every: int
    ) -> None:
        self.shard, self.mix, self.seed, self.engine = shard, mix, seed, engine
        self.steps, self.checkpoint_every = steps, checkpoint_every
        self.own: dict[int, dict[int, str]] = {}  # step → row's number → thought

    def of(self, step: int, rows: list[Row]) -> list[dict[str, Any]]:
        """Return the rows of a step with the thoughts to embed them with."""
        if self.mix.own and step >= self.mix.refresh and step not in self.own:
            self._sample(step)
        kinds, random = self._draw(step, rows)
        return replace_thoughts(rows, kinds, self.own.pop(step, {}), self.engine.module.renderer, random)

    def _draw(self, step: int, rows: list[Row]) -> tuple[list[str], np.random.Generator]:
        """Return the kinds of a step's thoughts, the same at each call; the generator makes the further draws."""
        random = np.random.default_rng([self.seed, step, rank()])
        kinds = draw_kinds(rows, self.mix, random)
        if step < self.mix.refresh:  # the model cannot write yet
            kinds = ["teacher" if kind == "own" else kind for kind in kinds]
        return kinds, random

    def _sample(self, first: int) -> None:
        """Write the own thoughts of the steps from `first` up to the next refresh or checkpoint."""
        last = min(self.steps, *(first + every - first % every for every in (self.mix.refresh, self.checkpoint_every)))
        renderer, places, prompts = self.engine.module.renderer, [], []
        for step in range(first, last):
            rows = self.shard.read(self.shard.rows_of(step))
            self.own[step] = {}
            for i, (row, kind) in enumerate(zip(rows, self._draw(step, rows)[0], strict=True)):
                if kind == "own":
                    places.append((step, i))
                    prompts.append([*row["query_ids"][: row["start"]], renderer.think])
        seed = int(np.random.default_rng([self.seed, first, rank(), 1]).integers(2**62))
        for (step, i), text in zip(places, write_with_engine(self.engine, prompts, seed), strict=True):
            self.own[step][i] = text


def write_with_engine(engine: TrainingEngine, prompts: list[list[int]], seed: int | None = None) -> list[str]:
    """Return a thought for each of this rank's prompts, greedy without a seed; every rank must call."""
    engine.eval()
    texts = write_thoughts(engine.module, prompts, seed, in_step=engine.zero_optimization_stage() == 3)
    engine.train()
    return texts
