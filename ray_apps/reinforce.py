"""Stage 2 on Ray Train, DeepSpeed and vLLM actors: GRPO on the reasoning and InfoNCE on the embedding.

One step: sample G reasonings a query, run one forward that serves the ratio, the reward's ranks and the
InfoNCE, update, push the weights to every vLLM actor. Departures from the paper, each a setting: ratio per
token, random extra items beside the batch's in the rank, no retrieval reward for malformed output.
Holds no formula: lrem.losses and lrem.rewards do.
"""

import time
from typing import Any

import ray
import ray.data
import torch
from torch import Tensor

from lrem.config import Config
from lrem.distributed import gather, rank, total
from lrem.losses import Clip, clip_fraction, group_advantage, info_nce, policy_gradient
from lrem.model import ReasoningEmbedder, Sequences, pad
from lrem.rewards import accuracy_reward, combine, format_reward, length_reward
from lrem.rewards import rank as rank_of
from lrem.schema import RL_PAIRS, read_items, read_table
from lrem.template import Parsed
from ray_apps.cluster import cluster
from ray_apps.cold_start import with_keys
from ray_apps.rollout import Rollout, start_engines, wait
from ray_apps.training import Log, Row, batches, fit, full_state, make_engine, shard_rows, steps_per_epoch

KEYS = ("query_key", "item_key")


def run(config: Config) -> dict[str, Any]:
    """Train from paths.cold_start and write paths.model; returns counts for the report."""
    pairs = with_keys(read_table(config.path("rl_pairs"), RL_PAIRS))
    read_items(config.path("items"))
    if pairs.num_rows < config.reinforce.workers:
        raise ValueError(f"{pairs.num_rows} RL pairs for {config.reinforce.workers} workers: raise curate.rl_share")
    with cluster(config):
        engines = start_engines(config.path("cold_start"), config)
        settings = {"engines": engines}
        try:
            fit(
                train,
                config,
                settings,
                ray.data.from_arrow(pairs).random_shuffle(seed=config.seed),
                config.reinforce.workers,
                "reinforce",
            )
        finally:
            for engine in engines:
                ray.kill(engine)
    return {"rows": pairs.num_rows}


def train(settings: dict[str, Any]) -> None:
    """One rank's training loop."""
    config = Config.model_validate(settings["config"])
    rl = config.reinforce
    rows = shard_rows()
    per_epoch = steps_per_epoch(len(rows), rl.batch_size)
    steps = rl.steps or per_epoch
    model = ReasoningEmbedder.load(config.path("cold_start"))
    trainer = Trainer(config, model, settings["engines"], steps)
    log = Log(config.run_dir / "logs" / "reinforce.jsonl", settings["board"], steps)
    started = time.monotonic()
    for batch, _ in zip(batches(rows, rl.batch_size, config.seed, -(-steps // per_epoch)), range(steps), strict=False):
        log(*trainer.step(batch))
    record = {
        "objective": "reinforce",
        "steps": trainer.engine.global_steps,
        "seconds": time.monotonic() - started,
        "zero_stage": trainer.engine.zero_optimization_stage(),
        "weight_syncs": trainer.version,
    }
    state = full_state(trainer.engine)
    if log.stream:
        model.save(config.path("model"), state, record)


class Trainer:
    """One rank's state: the DeepSpeed engine, the vLLM actors, and the policy version both agree on."""

    def __init__(self, config: Config, model: ReasoningEmbedder, engines: list[Any], steps: int) -> None:
        self.config, self.rollout_engines, self.version = config, engines, 0
        self.engine = make_engine(model, config.reinforce.optim, config.reinforce.batch_size, steps)
        items = read_items(config.path("items"))
        self.catalogue = items.select(["item_id", "title"]).to_pylist()
        self.random = torch.Generator().manual_seed(config.seed * 1000 + rank())

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
        query_keys, item_keys = (torch.tensor([row[name] for row in batch], device=device) for name in KEYS)
        owner = torch.arange(len(batch), device=device).repeat_interleave(rl.group_size)  # [B] of each rollout
        encoded, item_embeddings = self.engine(queries, items, self.config.rollout.temperature)
        rewards, values = self.reward(batch, parsed, encoded.embeddings, item_embeddings, owner)
        advantages = group_advantage(rewards.view(-1, rl.group_size)).flatten()
        clip = Clip(rl.ratio, rl.clip_low, rl.clip_high)
        policy = policy_gradient(encoded.log_probs, old, advantages, queries.scored, clip)
        contrast = info_nce(encoded.embeddings, item_embeddings, owner, query_keys, item_keys, rl.temperature)
        self.engine.backward(rl.grpo_weight * policy + rl.info_nce_weight * contrast)
        self.engine.step()
        log_probs = encoded.log_probs.detach()
        return values | {
            "policy": policy.item(),
            "info_nce": contrast.item(),
            "entropy": -mean(log_probs[queries.scored]),  # unbiased: the policy's own samples
            "mismatch_kl": mean((old - log_probs)[queries.scored]),
            "clip_fraction": clip_fraction(log_probs, old, queries.scored, clip).item(),
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
        }

    @torch.no_grad()
    def reward(
        self, batch: list[Row], parsed: list[Parsed], queries: Tensor, items: Tensor, owner: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Rewards [B] and the means of their parts; malformed output earns nothing."""
        ranks, candidates = self.ranks(batch, queries, items, owner)
        well_formed = torch.tensor([p.well_formed for p in parsed], device=items.device)
        lengths = torch.tensor([len(p.reasoning) for p in parsed], device=items.device)
        parts = {
            "format": format_reward(well_formed),
            "length": length_reward(lengths, self.engine.module.template.budget) * well_formed,
            "accuracy": accuracy_reward(ranks, candidates) * well_formed,
        }
        rewards = combine(parts, self.config.reinforce.rewards.model_dump())
        shown = parts | {"reward": rewards, "rank": ranks.float(), "reasoning_length": lengths.float()}
        return rewards, {name: mean(values) for name, values in shown.items()}

    @torch.no_grad()
    def ranks(self, batch: list[Row], queries: Tensor, items: Tensor, owner: Tensor) -> tuple[Tensor, int]:
        """Rank of each rollout's wanted item [B] among the global batch's items and random others."""
        model: ReasoningEmbedder = self.engine.module
        count = min(self.config.reinforce.extra_candidates, len(self.catalogue))
        drawn = torch.randperm(len(self.catalogue), generator=self.random)[:count].tolist()
        share = drawn[rank() :: self.config.reinforce.workers]
        extra = [self.catalogue[i] for i in share]
        embeddings = [items]
        if extra:
            embeddings.append(model.embed(pad([model.renderer.item(item["title"]) for item in extra]).to(items.device)))
        positions = {item["item_id"]: i for i, item in enumerate(self.catalogue)}
        ids = torch.tensor([positions[row["item_id"]] for row in [*batch, *extra]], device=items.device)
        candidates, keys = gather(torch.cat(embeddings)), gather(ids)  # [N, H], [N]
        similarities = queries @ candidates.T  # [B, N]
        own = ids[: len(batch)][owner]
        column = (keys[None, :] == own[:, None]).float().argmax(1)  # the first copy of the wanted item
        return rank_of(similarities, column, keys[None, :] == own[:, None]), len(candidates)

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
