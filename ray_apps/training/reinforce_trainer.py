"""One rank of stage 2: rollouts from the pool, one update, the new weights to every engine. See reinforce.py."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ray import ObjectRef

from lrem.config import ReinforceConfig
from lrem.data.known_positives import identity
from lrem.errors import RolloutError
from lrem.modeling.autocast import full_precision
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import Sequences
from lrem.training.distributed import rank, run_on_first_rank, sum_over_ranks
from lrem.training.grpo_step import GrpoStepResult, accumulate_gradients, collate
from lrem.training.rollout import Rollout, SyncReport
from ray_apps.rollouts.client import await_pool
from ray_apps.rollouts.weight_sync import WeightSync
from ray_apps.training import dev_set
from ray_apps.training.catalogue_candidates import CatalogueCandidates
from ray_apps.training.deepspeed_engine import engine_backward, full_state, update
from ray_apps.training.job import ReinforceJob
from ray_apps.training.row_shards import Row, StepRows
from ray_apps.training.stage_trainer import StageTrainer
from ray_apps.training.tracking import JsonLines, check_finite


class ReinforceTrainer(StageTrainer[ReinforceConfig]):
    """One rank's state; trainer and pool agree on the policy version, which is the number of steps done."""

    def __init__(self, job: ReinforceJob) -> None:
        super().__init__(job, job.stage.steps, epochs=1)
        self.pool, self.version, self.syncs = job.pool, 0, 0
        self.pending: deque[tuple[list[Row], ObjectRef]] = deque()  # rows of the next steps, and their rollouts to come
        self.candidates = CatalogueCandidates(self.config.path("items"), self.stage, self.config.seed, self.engine)
        self.reference: ReasoningEmbedder | None = None
        if self.stage.kl_weight:
            reference = ReasoningEmbedder.load(job.base_model).eval().requires_grad_(False)
            reference.autocast = self.engine.module.autocast  # or the KL would measure the rounding
            self.reference = reference.to(self.engine.device)

    def on_start(self, steps_done: int) -> None:
        """Give the pool the weights that training continues from."""
        self.samples = JsonLines(self.config.run_dir / "logs" / f"{self.job.name}.rollouts-{rank()}.jsonl", steps_done)
        self.sync(steps_done)

    def step(self, step_rows: StepRows) -> dict[str, float]:
        """Take one update on rollouts of the present policy, or of one at most `staleness` steps older."""
        clock = [time.monotonic()]
        rows, rollouts = self.sample(step_rows)
        clock.append(time.monotonic())
        values = self.update(step_rows, rows, rollouts)
        self.trained_rows = [row["row"] for row in rows]
        clock.append(time.monotonic())
        synced = self.sync(step_rows.step + 1)
        clock.append(time.monotonic())
        names = ("rollout_s", "train_s", "sync_s")
        phases = {name: end - start for name, start, end in zip(names, clock, clock[1:], strict=False)}
        phases["sync_s"] -= synced.waited_s  # for rollouts of the next step, if these are sampled ahead
        phases["rollout_s"] += synced.waited_s
        samples = sum_over_ranks(
            torch.tensor(float(len(rows) * self.stage.group_size), device=self.engine.device)
        ).item()
        return values | phases | {"samples_per_s": samples / (clock[-1] - clock[0]), "actor_restarts": synced.restarts}

    def sample(self, step_rows: StepRows) -> tuple[list[Row], list[list[Rollout]]]:
        """Return this step's rows and rollouts, and request those of the next `staleness` steps.

        Raises:
            RolloutError: the rollouts are older than that, or the pool has failed.
        """
        last = min(step_rows.step + self.stage.staleness, self.steps - 1)
        for step in range(step_rows.step + len(self.pending), last + 1):
            rows = self.shard.read(self.shard.rows_of(step))
            seeds = [identity(str(self.config.seed), str(step), str(row["row"])) % 2**31 for row in rows]
            request = self.pool.sample.remote([row["query"] for row in rows], self.stage.group_size, seeds)
            self.pending.append((rows, request))
        rows, request = self.pending.popleft()
        groups = await_pool(self.pool, request, self.config, f"the rollouts of step {step_rows.step + 1}")
        oldest = min(rollout.version for group in groups for rollout in group)
        if self.version - oldest > self.stage.staleness:
            raise RolloutError(
                f"step {step_rows.step + 1}: rollouts are of policy version {oldest}, the policy is at version "
                f"{self.version}, and staleness={self.stage.staleness}: the weight sync failed"
            )
        return rows, groups

    def update(self, step_rows: StepRows, rows: list[Row], rollouts: list[list[Rollout]]) -> dict[str, float]:
        """Reward the rollouts, back-propagate, and take one optimiser step; return the values to log."""
        engine, stage, temperature = self.engine, self.stage, self.config.rollout.temperature
        batch = collate(rows, rollouts, engine.module.renderer, self.known_positives)
        reference, budget = self.reference, engine.module.template.budget
        result = accumulate_gradients(
            batch,
            stage,
            budget,
            budget + self.config.rollout.slack,
            lambda sequences: engine(sequences, temperature),
            engine_backward(engine),
            engine.device,
            self.candidates.sample(step_rows.step, batch.groups),
            None if reference is None else lambda sequences: reference(sequences, temperature),
        )
        check_finite(step_rows.step + 1, result.values)  # before the weights are updated
        self._log_samples(step_rows.step + 1, batch.reasonings, rows, rollouts, result)
        lags = (self.version - batch.versions).float().to(engine.device)
        staleness = sum_over_ranks(lags.sum()) / sum_over_ranks(torch.tensor(float(lags.numel()), device=engine.device))
        values = result.values | {"staleness": staleness.item(), "lr": engine.get_lr()[0]}
        return values | {"grad_norm": update(engine), "epoch": step_rows.epoch}

    def sync(self, version: int) -> SyncReport:
        """Push all weights to every engine under `version`, and check that the engines sample the trainer's policy.

        Every rank must call, and every rank raises if one does.

        Raises:
            RolloutError: an engine did not load the weights in time, or samples another policy; the message names it.
        """
        weight_sync = WeightSync(self.pool, self.config, self.engine.module.renderer, self.score)
        report = weight_sync.push(full_state(self.engine), version)
        self.version, self.syncs = version, self.syncs + 1
        return report

    @torch.no_grad()
    def score(self, sequences: Sequences) -> torch.Tensor:
        """Return log-probabilities at the temperature of the rollouts, without autocast; every rank must call."""
        self.engine.eval()
        with full_precision(self.engine.module):  # the probe of a sync compares weights, not ways to round
            log_probs = self.engine(sequences.to(self.engine.device), self.config.rollout.temperature).log_probs
        self.engine.train()
        assert log_probs is not None  # the probe's sequences are scored
        return log_probs

    def evaluate(self) -> dict[str, float]:
        """Return the dev set's metrics on rank 0: with the model's own greedy thoughts, and `_empty` ones without."""
        if self.dev_set is None:
            return {}
        queries = self.dev_set.queries

        def reason() -> list[str]:
            request = self.pool.reason.remote(queries, 0.0, None)
            return list(await_pool(self.pool, request, self.config, "the reasonings of the dev set"))

        reasonings: dict[str, Sequence[str]] = {"": run_on_first_rank(reason), "_empty": [""] * len(queries)}
        return dev_set.evaluate(self.engine, self.dev_set, reasonings, self.stage.checkpoint.k, self.stage.chunk_tokens)

    def summary(self, values: Mapping[str, float]) -> str:
        """Return reward, median rank and share of well-formed rollouts."""
        return f"reward {values['reward']:.3f} rank {values['rank_p50']:.0f} format {values['format_rate']:.2f}"

    def training_record(self) -> dict[str, Any]:
        """Return the objective, and how often weights were pushed."""
        return {"objective": self.job.name, "weight_syncs": self.syncs}

    def _log_samples(
        self, step: int, reasonings: list[str], rows: list[Row], rollouts: list[list[Rollout]], result: GrpoStepResult
    ) -> None:
        """Log this rank's first groups, for people to read."""
        size = self.stage.group_size
        for number, row in enumerate(rows[: self.stage.samples]):
            for i in range(number * size, (number + 1) * size):
                rollout = rollouts[number][i - number * size]
                text = {"query": row["query"], "item_id": row["item_id"], "reasoning": reasonings[i]}
                parts = {name: round(part[i].item(), 4) for name, part in result.parts.items()}
                rewards = {"reward": round(result.rewards[i].item(), 4), **parts, "rank": int(result.ranks[i])}
                self.samples.write(step, text | rewards | {"version": rollout.version})
