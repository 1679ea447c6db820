"""Stage 2 on Ray Train, DeepSpeed and the rollout pool: GRPO on the reasoning and InfoNCE on the embedding.

One step: G reasonings of each query from the pool, one update, the new weights to every engine. Departures from the
paper: malformed output earns nothing, known relevant items cost no rank, the loss is a mean over a group and not its
sum; and, as settings, the ratio is per token and the rank is taken among random items too. Holds no formula:
lrem.training.grpo_step does.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
import torch.distributed as dist

from lrem.config import Config, ReinforceConfig
from lrem.data.files import atomic_folder
from lrem.data.known_positives import KnownPositives, identity, query_identity
from lrem.data.schema import NEGATIVES, RL_PAIRS, read_items, read_table
from lrem.errors import DataError, RewardError, RolloutError
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from lrem.modeling.sequences import Group, Sequences
from lrem.training.distributed import gather_rows, rank, sum_over_ranks, world_size
from lrem.training.grpo_step import Candidates, GrpoStepResult, accumulate_gradients, collate
from lrem.training.rewards import load_reward, nearest_items
from lrem.training.rollout import Rollout
from ray_apps.cluster.session import cluster
from ray_apps.rollouts.client import await_pool, start_pool, stop_pool
from ray_apps.rollouts.engines import expected_reports
from ray_apps.rollouts.pool import SyncReport, check_load_report
from ray_apps.rollouts.weight_sync import pack_state, state_checksum
from ray_apps.training import dev_set
from ray_apps.training.checkpoints import Checkpoints
from ray_apps.training.launch import Place, Row, engine_backward, fit, full_state, update
from ray_apps.training.stage_trainer import StageTrainer, must_stay, run_steps
from ray_apps.training.tracking import JsonLines, check_finite, require

NAME = "reinforce"


def run(config: Config, resume: bool = False) -> dict[str, Any]:
    """Train from paths.cold_start and write paths.model; returns counts for the report.

    Args:
        resume: go on from the newest checkpoint of a run that was stopped.
    """
    rl, start = config.reinforce, config.path("cold_start")
    require(rl.trackers)
    _check(config)
    made_of = fingerprint(start)  # said here if there is no model, rather than by an actor
    rows = read_pairs(config)
    checkpoints = Checkpoints(config.run_dir / "checkpoints" / NAME, rl.checkpoint.keep)
    checkpoints.look(resume)
    dev = dev_set.load(config, rl.checkpoint, with_reasoning=True)
    with cluster(config):
        pool = start_pool(start, config, rl.workers)
        try:
            known = KnownPositives(rows["query_key"].to_numpy(), rows["item_key"].to_numpy())
            data = f"{rows.num_rows} rows, {int(rows['row'].to_numpy().view(np.uint64).sum()):016x}"
            settings = {
                "pool": pool,
                "start": str(start),
                "rows": rows.num_rows,
                "known": ray.put(known),
                "dev": ray.put(dev),
                "checkpoints": str(checkpoints.folder),
                "run": must_stay(config, rl, data, made_of, dev) | {"rollout": sampled_as(config)},
            }
            checkpoints.begin(settings["run"])
            dataset = ray.data.from_arrow(rows)
            fit(train, config, settings, dataset, rl.workers, NAME, config.rollout.actors, rl.restarts)
        finally:
            stop_pool(pool)
            checkpoints.sweep()
    with atomic_folder(config.path("model")) as part:
        checkpoints.export(part)
    checkpoints.finish()
    return {"rows": rows.num_rows}


def _check(config: Config) -> None:
    """Raises DataError for settings that could not work."""
    rl = config.reinforce
    try:
        for name in rl.rewards.weights():
            load_reward(name)
    except RewardError as error:
        raise DataError(f"reinforce.rewards: {error}") from error
    if rl.batch_size * rl.workers + rl.extra_candidates < 2:
        raise DataError("a rank among one item says nothing: raise reinforce.batch_size or extra_candidates")


def sampled_as(config: Config) -> list[Any]:
    """What a resumed run has to sample alike."""
    rollout = config.rollout
    return [rollout.engine, rollout.temperature, rollout.slack, rollout.dtype]


def read_pairs(config: Config) -> pa.Table:
    """RL_PAIRS with `row` (hash of content and seed, sorted), `query_key`, `item_key`, and hard negatives if any.

    Raises:
        DataError: a row is blank, its item is not in the catalogue or its negatives lack titles, or there are too few
            rows for the workers.
    """
    uri, rl = config.uri("rl_pairs"), config.reinforce
    pairs = read_table(uri, RL_PAIRS, keep_extra=True)
    pairs = pairs.select([*RL_PAIRS.names, *(name for name in NEGATIVES.names if name in pairs.column_names)])
    known = set(read_items(config.path("items"))["item_id"].to_pylist())
    rows = pairs.to_pylist()
    for row in rows:
        where = f"{uri}: query '{row['query_id']}', item '{row['item_id']}'"
        for name in ("query", "title"):
            if not row[name].strip():
                raise DataError(f"{where}: the {name} is empty: fill it or drop the row")
        if row["item_id"] not in known:
            raise DataError(f"{where}: the item is not in {config.path('items')}: drop the row or add the item")
        hard = row.get("negative_ids") or [], row.get("negative_titles") or []
        if len(hard[0]) != len(hard[1]) or not all(isinstance(text, str) for text in [*hard[0], *hard[1]]):
            raise DataError(f"{where}: {len(hard[0])} negative_ids and {len(hard[1])} titles: each id needs its title")
        row["row"] = identity(str(config.seed), row["query"], row["item_id"], row["title"], *hard[0])
        row["query_key"], row["item_key"] = query_identity(row["query"]), identity(row["item_id"])
        row["negative_keys"] = [identity(item) for item in hard[0]]
    if len(rows) < rl.workers:
        raise DataError(f"{len(rows)} RL pairs for {rl.workers} workers: raise curate.rl_share, or lower workers")
    keys = [(name, pa.int64()) for name in ("row", "query_key", "item_key")]
    schema = pa.schema([*pairs.schema, *keys, ("negative_keys", pa.list_(pa.int64()))])
    return pa.Table.from_pylist(rows, schema).sort_by("row")


def train(settings: dict[str, Any]) -> None:
    """One rank's run: from the newest checkpoint, or from the start, to the last step."""
    run_steps(Trainer(settings), settings["board"])


class Trainer(StageTrainer):
    """One rank's state: the DeepSpeed engine, the pool, and the policy version both agree on (the steps done)."""

    stage: ReinforceConfig

    def __init__(self, settings: dict[str, Any]) -> None:
        rl = Config.model_validate(settings["config"]).reinforce
        super().__init__(NAME, rl, settings, 1, rl.steps)
        self.pool, self.version, self.syncs = settings["pool"], 0, 0
        self.waiting: deque[tuple[list[Row], Any]] = deque()  # of the next steps: rows, and their rollouts to come
        self.items = read_items(self.config.path("items")).select(["item_id", "title"])
        self.index: torch.Tensor | None = None  # this rank's share of the catalogue, embedded, for hard candidates
        self.reference: ReasoningEmbedder | None = None
        if rl.kl_weight:
            self.reference = ReasoningEmbedder.load(self.start).eval().requires_grad_(False).to(self.engine.device)

    def begin(self, first: int) -> None:
        """The pool takes the weights that training goes on from."""
        self.samples = JsonLines(self.config.run_dir / "logs" / f"{NAME}.rollouts-{rank()}.jsonl", first)
        self.sync(first)

    def step(self, place: Place) -> dict[str, float]:
        """One update on rollouts of the present policy, or of one at most `staleness` steps older."""
        clock = [time.monotonic()]
        rows, rollouts = self.rollouts(place)
        clock.append(time.monotonic())
        values = self.update(place, rows, rollouts)
        self.trained = [row["row"] for row in rows]
        clock.append(time.monotonic())
        synced = self.sync(place.step + 1)
        clock.append(time.monotonic())
        names = ("rollout_s", "train_s", "sync_s")
        phases = {name: end - begin for name, begin, end in zip(names, clock, clock[1:], strict=False)}
        phases["sync_s"] -= synced.waited  # for rollouts of the next step, where these are sampled ahead
        phases["rollout_s"] += synced.waited
        samples = sum_over_ranks(
            torch.tensor(float(len(rows) * self.stage.group_size), device=self.engine.device)
        ).item()
        return values | phases | {"samples_per_s": samples / (clock[-1] - clock[0]), "actor_restarts": synced.restarts}

    def rollouts(self, place: Place) -> tuple[list[Row], list[list[Rollout]]]:
        """This step's rows and their rollouts; those of the next `staleness` steps are asked for already.

        Raises:
            RolloutError: rollouts are older than that, or the pool has given up.
        """
        last = min(place.step + self.stage.staleness, self.steps - 1)
        for step in range(place.step + len(self.waiting), last + 1):
            rows = self.shard.take(self.shard.place(step))
            seeds = [identity(str(self.config.seed), str(step), str(row["row"])) % 2**31 for row in rows]
            asked = self.pool.sample.remote([row["query"] for row in rows], self.stage.group_size, seeds)
            self.waiting.append((rows, asked))
        rows, asked = self.waiting.popleft()
        groups = await_pool(self.pool, asked, self.config, f"the rollouts of step {place.step + 1}")
        oldest = min(rollout.version for group in groups for rollout in group)
        if self.version - oldest > self.stage.staleness:
            raise RolloutError(
                f"rollouts of policy version {oldest} at version {self.version}, staleness={self.stage.staleness} is "
                "allowed: the weight sync failed"
            )
        return rows, groups

    def update(self, place: Place, rows: list[Row], rollouts: list[list[Rollout]]) -> dict[str, float]:
        """Forward, reward, and take one optimiser step; returns the logged values."""
        engine, rl, temperature = self.engine, self.stage, self.config.rollout.temperature
        batch = collate(rows, rollouts, engine.module.renderer, self.known)
        reference = self.reference
        found = accumulate_gradients(
            batch,
            rl,
            engine.module.template.budget,
            engine.module.template.budget + self.config.rollout.slack,
            lambda sequences: engine(sequences, temperature),
            engine_backward(engine),
            engine.device,
            self.candidates(place.step, batch.groups),
            None if reference is None else lambda sequences: reference(sequences, temperature),
        )
        engine.module.state_gradients.clear()
        check_finite(place.step + 1, found.values)  # before the weights take it
        self._write_samples(place.step + 1, batch.reasonings, rows, rollouts, found)
        lags = (self.version - batch.versions).float().to(engine.device)
        staleness = sum_over_ranks(lags.sum()) / sum_over_ranks(torch.tensor(float(lags.numel()), device=engine.device))
        values = found.values | {"staleness": staleness.item(), "lr": engine.get_lr()[0]}
        return values | {"grad_norm": update(engine), "epoch": place.epoch}

    @torch.no_grad()
    def candidates(self, step: int, groups: Sequence[Group]) -> Candidates:
        """This rank's share of the items that widen the ranking, embedded afresh; what overlaps counts once."""
        count = min(self.stage.extra_candidates, self.items.num_rows)
        drawn = np.random.default_rng([self.config.seed, step]).choice(self.items.num_rows, count, replace=False)
        numbers = drawn[_share(count)]  # all ranks draw alike
        if self.stage.hard_candidates:
            numbers = np.concatenate([numbers, self.hard(step, groups)])
        device = self.engine.device
        if len(numbers) == 0:
            none = torch.empty(0, self.engine.module.dimension, device=device)
            return Candidates(none, torch.empty(0, dtype=torch.long, device=device))
        keys = torch.tensor([identity(item) for item in self.items["item_id"].take(numbers).to_pylist()], device=device)
        return Candidates(self.embed(numbers), keys)

    def hard(self, step: int, groups: Sequence[Group]) -> np.ndarray:
        """Numbers of the items in this rank's share of the catalogue that are nearest to any rank's queries.

        A query is taken with its first reasoning. Vectors are those of the last refresh, of all since a resume.
        """
        rl, mine = self.stage, _share(self.items.num_rows)
        if self.index is None or step % rl.refresh == 0:
            self.index = self.embed(mine)
        asked = [group.prompt + group.completions[0] for group in groups]
        queries = gather_rows(dev_set.encode_rows(self.engine, asked, rl.chunk_tokens))
        found: np.ndarray = mine[nearest_items(queries, self.index, rl.hard_candidates).cpu().numpy()]
        return found

    def embed(self, numbers: np.ndarray) -> torch.Tensor:
        """Unit embeddings [n, H] of some items by their numbers; every rank calls."""
        rows = [self.engine.module.renderer.item(title) for title in self.items["title"].take(numbers).to_pylist()]
        return dev_set.encode_rows(self.engine, rows, self.stage.chunk_tokens)

    def sync(self, version: int) -> SyncReport:
        """Push the whole state to every engine under `version`, and check that they sample the trainer's policy.

        Every rank calls, and each meets a failure alike.

        Raises:
            RolloutError: an engine did not take the weights in time, or samples another policy; it is named.
        """
        weights = pack_state(full_state(self.engine))  # nothing but on rank 0
        sent = state_checksum(weights)

        def push() -> tuple[int, SyncReport]:
            asked = self.pool.sync.remote([ray.put(weights)], version)
            return sent, await_pool(self.pool, asked, self.config, f"policy version {version} to be taken")

        sent, synced = _on_first_rank(push)
        for answer in expected_reports(self.score, self.engine.module.renderer, synced.loaded, version, sent):
            check_load_report(*answer, self.config.rollout.probe_tolerance)
        self.version, self.syncs = version, self.syncs + 1
        found: SyncReport = synced
        return found

    @torch.no_grad()
    def score(self, sequences: Sequences) -> torch.Tensor:
        """Log-probabilities as rollouts are sampled; every rank calls."""
        self.engine.eval()
        found: torch.Tensor = self.engine(sequences.to(self.engine.device), self.config.rollout.temperature).log_probs
        self.engine.train()
        return found

    def measure(self) -> dict[str, float]:
        """Metrics of the dev set with the model's own greedy reasoning, on rank 0."""
        if self.dev is None:
            return {}
        queries = self.dev.queries

        def reason() -> list[str]:
            asked = self.pool.reason.remote(queries, 0.0, None)
            return list(await_pool(self.pool, asked, self.config, "the reasonings of the dev set"))

        reasoned = self.dev._replace(reasonings=_on_first_rank(reason))
        return dev_set.measure(self.engine, reasoned, self.stage.checkpoint.k, self.stage.chunk_tokens)

    def note(self, values: dict[str, float]) -> str:
        """Reward, median rank, share of well-formed rollouts."""
        return f"reward {values['reward']:.3f} rank {values['rank_p50']:.0f} format {values['format_rate']:.2f}"

    def record(self) -> dict[str, Any]:
        """What trained the model."""
        return {"objective": NAME, "weight_syncs": self.syncs}

    def _write_samples(
        self, step: int, reasonings: list[str], rows: list[Row], rollouts: list[list[Rollout]], found: GrpoStepResult
    ) -> None:
        """The first groups of this rank, for people to read."""
        size = self.stage.group_size
        for number, row in enumerate(rows[: self.stage.samples]):
            for i in range(number * size, (number + 1) * size):
                rollout = rollouts[number][i - number * size]
                said = {"query": row["query"], "item_id": row["item_id"], "reasoning": reasonings[i]}
                parts = {name: round(part[i].item(), 4) for name, part in found.parts.items()}
                rewarded = {"reward": round(found.rewards[i].item(), 4), **parts, "rank": int(found.ranks[i])}
                self.samples.write(step, said | rewarded | {"version": rollout.version})


def _share(count: int) -> np.ndarray:
    """This rank's part of 0 … count-1: equally many on every rank, so that ZeRO-3 gathers weights alike."""
    size = -(-count // world_size())
    return np.arange(rank() * size, (rank() + 1) * size) % max(count, 1)


def _on_first_rank(work: Callable[[], Any]) -> Any:
    """What `work` gives on rank 0, for every rank; if it fails there, each raises RolloutError."""
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer[0] = work()
        except Exception as error:  # whatever it is, the others wait for it
            answer[1] = f"{error}"
    if world_size() > 1:
        dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise RolloutError(answer[1])
    return answer[0]
