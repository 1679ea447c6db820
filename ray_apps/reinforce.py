"""Stage 2 on Ray Train, DeepSpeed and vLLM actors: GRPO on the reasoning and InfoNCE on the embedding.

One step: sample G reasonings a query, run one forward that serves the ratio, the reward's ranks and the
InfoNCE, update, push the weights to every vLLM actor. Departures from the paper: the ratio is per token and the
rank is taken among random items too (both settings); malformed output earns nothing.
Holds no formula: lrem.losses and lrem.rewards do.
"""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from torch import Tensor

from lrem.config import Config
from lrem.distributed import gather, rank, total, world_size
from lrem.losses import Clip, clip_fraction, global_loss, group_advantage, info_nce, policy_gradient
from lrem.model import ReasoningEmbedder, Sequences, fingerprint, pad
from lrem.positives import KnownPositives, identity, query_identity
from lrem.rewards import combine, reward_parts
from lrem.rewards import rank as rank_of
from lrem.schema import RL_PAIRS, DataError, read_items, read_table
from lrem.template import Parsed
from ray_apps.cluster import cluster
from ray_apps.rollout import Rollout, start_engines, wait
from ray_apps.tracking import Log
from ray_apps.training import Row, Shard, engine_backward, fit, full_state, make_engine, update


def run(config: Config) -> dict[str, Any]:
    """Train from paths.cold_start and write paths.model; returns counts for the report."""
    pairs = read_table(config.path("rl_pairs"), RL_PAIRS)
    unknown = set(pairs["item_id"].to_pylist()) - set(read_items(config.path("items"))["item_id"].to_pylist())
    if unknown:
        raise DataError(f"{config.path('rl_pairs')}: item '{min(unknown)}' is not in {config.path('items')}")
    if pairs.num_rows < config.reinforce.workers:
        raise DataError(f"{pairs.num_rows} RL pairs for {config.reinforce.workers} workers: raise curate.rl_share")
    fingerprint(config.path("cold_start"))  # said here if there is no model, rather than by an actor
    rl = config.reinforce
    keyed = with_keys(pairs.take(np.random.default_rng(config.seed).permutation(pairs.num_rows)))
    with cluster(config):
        engines = start_engines(config.path("cold_start"), config, rl.workers)
        known = KnownPositives(keyed["query_key"].to_numpy(), keyed["item_key"].to_numpy())
        settings = {"engines": engines, "rows": keyed.num_rows, "known": ray.put(known)}
        try:
            fit(train, config, settings, ray.data.from_arrow(keyed), rl.workers, "reinforce", len(engines))
        finally:
            for engine in engines:
                ray.kill(engine)
    return {"rows": pairs.num_rows}


def train(settings: dict[str, Any]) -> None:
    """One rank's training loop."""
    config = Config.model_validate(settings["config"])
    rl = config.reinforce
    shard = Shard(settings["rows"], rl.batch_size, config.seed)
    steps = rl.steps or shard.per_epoch
    model = ReasoningEmbedder.load(config.path("cold_start"))
    trainer = Trainer(config, model, settings["engines"], ray.get(settings["known"], timeout=300), steps)
    log = Log(config, "reinforce", settings["board"], steps)
    started = time.monotonic()
    for place in shard.places(0, steps):
        log(place.step + 1, *trainer.step(shard.take(place)))
    log.close()
    record = {
        "objective": "reinforce",
        "steps": trainer.engine.global_steps,
        "seconds": time.monotonic() - started,
        "zero_stage": trainer.engine.zero_optimization_stage(),
        "weight_syncs": trainer.version,
    }
    state = full_state(trainer.engine)
    if rank() == 0:
        model.save(config.path("model"), state, record)


def with_keys(pairs: pa.Table) -> pa.Table:
    """Add `query_key` and `item_key`, the identities that the losses compare."""
    keys = {
        "query_key": map(query_identity, pairs["query"].to_pylist()),
        "item_key": map(identity, pairs["item_id"].to_pylist()),
    }
    for name, values in keys.items():
        pairs = pairs.append_column(name, pa.array(values, pa.int64()))
    return pairs


class Trainer:
    """One rank's state: the DeepSpeed engine, the vLLM actors, and the policy version both agree on."""

    def __init__(
        self, config: Config, model: ReasoningEmbedder, engines: list[Any], known: KnownPositives, steps: int
    ) -> None:
        self.config, self.rollout_engines, self.known, self.version = config, engines, known, 0
        self.engine = make_engine(model, config.reinforce.optim, config.reinforce.batch_size, steps)
        items = read_items(config.path("items"))
        self.catalogue = items.select(["item_id", "title"]).to_pylist()
        self.position = {item["item_id"]: i for i, item in enumerate(self.catalogue)}
        self.random = torch.Generator().manual_seed(config.seed)  # one draw on all ranks: each embeds a share

    def step(self, batch: list[Row]) -> tuple[dict[str, float], str]:
        """One on-policy update; returns the logged values and the note beside the progress bar."""
        clock = [time.monotonic()]
        rollouts = self.sample([row["query"] for row in batch])
        clock.append(time.monotonic())
        values = self.update(batch, rollouts)
        clock.append(time.monotonic())
        self.sync()
        clock.append(time.monotonic())
        names = ("rollout", "train", "sync")
        values |= {f"{name}_s": end - start for name, start, end in zip(names, clock, clock[1:], strict=False)}
        return (
            values,
            f"reward {values['reward']:.3f} rank {values['rank']:.1f} format {values['format']:.2f}",
        )

    def sample(self, queries: list[str]) -> list[list[Rollout]]:
        """G rollouts of each query, the queries dealt out over the vLLM actors.

        Raises:
            RuntimeError: an actor still served an older policy.
        """
        engines, group = self.rollout_engines, self.config.reinforce.group_size
        shares = [queries[i :: len(engines)] for i in range(len(engines))]
        calls = [engine.sample.remote(share, group) for engine, share in zip(engines, shares, strict=True) if share]
        parts = wait(calls, self.config.rollout.timeout_s, f"rollouts of policy version {self.version}")
        groups = [parts[i % len(engines)][i // len(engines)] for i in range(len(queries))]
        stale = {rollout.version for group in groups for rollout in group} - {self.version}
        if stale:
            raise RuntimeError(f"rollouts of policy version {stale} at version {self.version}: the weight sync failed")
        return groups

    def update(self, batch: list[Row], groups: list[list[Rollout]]) -> dict[str, float]:
        """Forward once, reward, and take one optimiser step; returns the logged values."""
        rl, device = self.config.reinforce, self.engine.device
        queries, old, parsed = render(self.engine.module, batch, groups)
        queries, old = queries.to(device), old.to(device)
        items = pad([self.engine.module.renderer.item(row["title"]) for row in batch]).to(device)
        item_keys = torch.tensor([row["item_key"] for row in batch], device=device)
        known = torch.from_numpy(self.known.table([row["query_key"] for row in batch])).to(device)
        owner = torch.arange(len(batch), device=device).repeat_interleave(rl.group_size)  # [B] of each rollout
        extra, extra_ids = self.extra_items()
        encoded = self.engine(queries, self.config.rollout.temperature)
        item_embeddings = self.engine(items).embeddings
        sampled, log_probs = queries.scored, encoded.log_probs
        assert sampled is not None  # `render` scores what was sampled
        assert log_probs is not None
        ids = torch.tensor([self.position[row["item_id"]] for row in batch], device=device)
        candidates = gather(torch.cat([item_embeddings.detach(), extra])), gather(torch.cat([ids, extra_ids]))
        ranks, count = rank_of(encoded.embeddings.detach(), ids[owner], *candidates)
        rewards, values = self.reward(parsed, ranks, count)
        advantages = group_advantage(rewards.view(-1, rl.group_size)).flatten()
        clip = Clip(rl.ratio, rl.clip_low, rl.clip_high)
        policy = policy_gradient(log_probs, old, advantages, sampled, clip)
        contrast = info_nce(encoded.embeddings, item_embeddings, owner, item_keys, known[owner], rl.temperature)
        engine_backward(self.engine)(rl.grpo_weight * policy + rl.info_nce_weight * contrast, True)
        norm = update(self.engine)
        self.engine.module.state_gradients.clear()
        log_probs = log_probs.detach()
        return values | {
            "policy": global_loss(policy),
            "info_nce": global_loss(contrast),
            "entropy": -mean(log_probs[sampled]),  # unbiased: the policy's own samples
            "mismatch_kl": mean((old - log_probs)[sampled]),
            "clip_fraction": clip_fraction(log_probs, old, sampled, clip).item(),
            "grad_norm": norm,
        }

    def reward(self, parsed: list[Parsed], ranks: Tensor, candidates: int) -> tuple[Tensor, dict[str, float]]:
        """Rewards [B], and the means of their parts for the log."""
        well_formed = torch.tensor([p.well_formed for p in parsed], device=ranks.device)
        lengths = torch.tensor([len(p.reasoning) for p in parsed], device=ranks.device)
        parts = reward_parts(well_formed, lengths, self.engine.module.template.budget, ranks, candidates)
        rewards = combine(parts, self.config.reinforce.rewards.model_dump())
        shown = parts | {"reward": rewards, "rank": ranks.float(), "reasoning_length": lengths.float()}
        return rewards, {name: mean(values) for name, values in shown.items()}

    @torch.no_grad()
    def extra_items(self) -> tuple[Tensor, Tensor]:
        """Embeddings [M, H] and ids [M] of this rank's share of the random items that widen the ranking.

        Every rank embeds equally many, so that ZeRO-3 gathers weights alike; what overlaps counts once.
        """
        count = min(self.config.reinforce.extra_candidates, len(self.catalogue))
        drawn = torch.randperm(len(self.catalogue), generator=self.random)[:count]
        if count == 0:
            model: ReasoningEmbedder = self.engine.module
            return torch.empty(0, model.dimension, device=self.engine.device), drawn.to(self.engine.device)
        share = -(-count // world_size())
        mine = drawn[torch.arange(rank() * share, (rank() + 1) * share) % count]
        rows = [self.engine.module.renderer.item(self.catalogue[i]["title"]) for i in mine.tolist()]
        return self.engine.module.embed(pad(rows).to(self.engine.device)), mine.to(self.engine.device)

    def sync(self) -> None:
        """Push the whole state to every vLLM actor in memory, in one call each, under the next version."""
        self.version += 1
        state = full_state(self.engine)
        if rank() == 0:
            weights = ray.put(list(state.items()))
            calls = [engine.update_weights.remote(weights, self.version) for engine in self.rollout_engines]
            wait(calls, self.config.rollout.timeout_s, f"the vLLM actors to take policy version {self.version}")
        total(torch.zeros(1, device=self.engine.device))  # nobody samples before the sync is done


def render(
    model: ReasoningEmbedder, batch: list[Row], groups: list[list[Rollout]]
) -> tuple[Sequences, Tensor, list[Parsed]]:
    """Rollouts → (sequences [B, L] with the sampled tokens scored, old log-probabilities [B, L], parsed).

    A malformed sample gets a forced `</think><emb>` to be embedded at; forced tokens are never scored.
    """
    renderer = model.renderer
    rows, spans, parsed, sampled = [], [], [], []
    for row, group in zip(batch, groups, strict=True):
        prompt = renderer.query_prompt(row["query"])
        for rollout in group:
            read = renderer.parse(rollout.tokens)
            forced = [] if read.well_formed else [renderer.close, renderer.emb]
            rows.append(prompt + rollout.tokens + forced)
            spans.append((len(prompt), len(prompt) + len(rollout.tokens)))
            parsed.append(read)
            sampled.append(rollout.log_probs)
    sequences = pad(rows, spans)
    old = torch.zeros(sequences.ids.shape)
    for i, ((start, end), log_probs) in enumerate(zip(spans, sampled, strict=True)):
        old[i, start:end] = torch.tensor(log_probs)
    return sequences, old, parsed


def mean(values: Tensor) -> float:
    """Mean over every rank's elements."""
    return (total(values.sum()) / total(torch.tensor(float(values.numel()), device=values.device))).item()
