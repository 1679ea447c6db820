"""Further items that stage 2 ranks a query's item among: random ones, and the nearest of the whole catalogue."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lrem.config import ReinforceConfig
from lrem.data.known_positives import identity
from lrem.data.schema import read_items
from lrem.modeling.sequences import Group
from lrem.training.distributed import gather_rows, rank, world_size
from lrem.training.grpo_step import Candidates
from lrem.training.rewards import nearest_items
from ray_apps.training.deepspeed_engine import TrainingEngine
from ray_apps.training.dev_set import encode_rows


class CatalogueCandidates:
    """One rank's share of the further candidates, embedded afresh at every step; every rank must call each method.

    Args:
        items: the catalogue's file.
    """

    def __init__(self, items: Path, stage: ReinforceConfig, seed: int, engine: TrainingEngine) -> None:
        self.items = read_items(items, check_limits=False).select(["item_id", "title"])
        self.stage, self.seed, self.engine = stage, seed, engine
        self.vectors: torch.Tensor | None = None  # [N / ranks, H], this rank's share of the catalogue

    @torch.no_grad()
    def sample(self, step: int, groups: Sequence[Group]) -> Candidates:
        """Return this rank's share of a step's candidates; an item that occurs twice counts once in the ranking."""
        count = min(self.stage.extra_candidates, self.items.num_rows)
        drawn = np.random.default_rng([self.seed, step]).choice(self.items.num_rows, count, replace=False)
        numbers = drawn[_rank_share(count)]  # all ranks draw the same numbers
        if self.stage.hard_candidates:
            numbers = np.concatenate([numbers, self._nearest(step, groups)])
        device = self.engine.device
        if len(numbers) == 0:
            empty = torch.empty(0, self.engine.module.dimension, device=device)
            return Candidates(empty, torch.empty(0, dtype=torch.long, device=device))
        keys = torch.tensor([identity(item) for item in self.items["item_id"].take(numbers).to_pylist()], device=device)
        return Candidates(self._embed(numbers), keys)

    def _nearest(self, step: int, groups: Sequence[Group]) -> np.ndarray:
        """Return the items of this rank's share of the catalogue that are nearest to any rank's queries, by number.

        A query is embedded with its first reasoning. The catalogue's vectors are refreshed every `refresh` steps and
        after a resume.
        """
        share = _rank_share(self.items.num_rows)
        if self.vectors is None or step % self.stage.refresh == 0:
            self.vectors = self._embed(share)
        first_rollouts = [group.prompt + group.completions[0] for group in groups]
        queries = gather_rows(encode_rows(self.engine, first_rollouts, self.stage.chunk_tokens))
        numbers: np.ndarray = share[nearest_items(queries, self.vectors, self.stage.hard_candidates).cpu().numpy()]
        return numbers

    def _embed(self, numbers: np.ndarray) -> torch.Tensor:
        """Return unit embeddings [n, H] of items by number."""
        rows = [self.engine.module.renderer.item_ids(title) for title in self.items["title"].take(numbers).to_pylist()]
        return encode_rows(self.engine, rows, self.stage.chunk_tokens)


def _rank_share(count: int) -> np.ndarray:
    """Return this rank's share of 0 … count-1: equally many on every rank, so that ZeRO-3 gathers weights in step."""
    size = -(-count // world_size())
    return np.arange(rank() * size, (rank() + 1) * size) % max(count, 1)
