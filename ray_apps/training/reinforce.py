"""Stage 2 on Ray Train, DeepSpeed and the rollout pool: GRPO on the reasoning and InfoNCE on the embedding.

A step, in order:

1. Each rank requests G reasonings (`reinforce.group_size`) of each of its `batch_size` queries from the rollout pool.
   A rollout carries its tokens, their log-probabilities as sampled, and the policy version that wrote it.
2. One forward of each prompt with its G reasonings gives the log-probabilities of the policy and the G embeddings of
   the query; another embeds the items.
3. Each rollout is rewarded by its format, its length, and the rank of the wanted item among the items of the global
   batch and some more of the catalogue. Its advantage is its reward against those of its group.
4. One update with L = grpo_weight · L_GRPO + info_nce_weight · L_InfoNCE (+ kl_weight · KL to the cold start).
5. The new weights go to every engine, which proves that it samples the new policy.

Departures from the paper (arXiv 2510.14321), each with its reason and its setting:

1. Malformed output earns no reward, whatever it retrieves: a reasoning that the parser cannot read is of no use. It
   gets a forced `</think><emb>` to be embedded at for InfoNCE; forced tokens are never scored. No setting.
2. Items that are known to be relevant to the query cost no rank: a model that finds another right answer must not be
   punished. No setting.
3. The rank is taken among 1,024 random items too, embedded afresh at each step, since among the items of a small batch
   the reward has no resolution. `extra_candidates=0` is the paper's. Optionally also among the nearest items of the
   catalogue: `hard_candidates`.
4. The policy loss is a mean over the group, not its sum, so that its weight does not depend on G. `grpo_weight` times
   G is the paper's.
5. The ratio is taken and clipped per token, and every token counts alike, because one long sample should not swing a
   step. `ratio=sequence` and `aggregate=sequence` are the paper's.

Off by default, and not in the paper: KL to the cold start (`kl_weight`), rollouts one step behind (`staleness`) with
their `correction`, other advantages, further rewards. The formulas are in lrem.training.grpo_step and what it imports.
"""

from typing import Any

import ray
from ray.actor import ActorHandle
from transformers import AutoConfig

from lrem.config import Config
from lrem.data.files import atomic_folder
from lrem.data.schema import RL_PAIRS, open_table
from lrem.errors import DataError, RewardError
from lrem.modeling.freezing import check_freezable
from lrem.modeling.model import fingerprint
from lrem.training.rewards import load_reward
from ray_apps.cluster.session import cluster
from ray_apps.rollouts.client import start_pool, stop_pool
from ray_apps.training import dev_set
from ray_apps.training.checkpoints import Checkpoints
from ray_apps.training.corpus import load_pairs
from ray_apps.training.job import ReinforceJob
from ray_apps.training.launch import fit
from ray_apps.training.reinforce_trainer import ReinforceTrainer
from ray_apps.training.stage_trainer import run_signature, run_steps
from ray_apps.training.tracking import require_trackers

NAME = "reinforce"


def run(config: Config, resume: bool = False) -> dict[str, Any]:
    """Train from paths.cold_start and write paths.model; return counts for the stage's report.

    Args:
        resume: continue a stopped run from its newest checkpoint.
    """
    stage, base_model = config.reinforce, config.path("cold_start")
    require_trackers(stage.trackers)
    _check_settings(config)
    # fail fast on a missing model or missing data, before anything is started
    base_fingerprint = fingerprint(base_model)
    check_freezable(AutoConfig.from_pretrained(base_model), stage.freeze_layers)
    open_table(config.uri("rl_pairs"), RL_PAIRS)
    checkpoints = Checkpoints(config.run_dir / "checkpoints" / NAME, stage.checkpoint.keep)
    checkpoints.check_resume(resume)
    dev = dev_set.load(config, stage.checkpoint)
    with cluster(config):
        corpus = load_pairs(config, stage, base_model)
        signature = run_signature(config, stage, corpus.describe(), base_fingerprint, dev)
        signature |= {"rollout": _sampling_signature(config)}
        pool = start_pool(base_model, config, stage.workers)
        try:
            checkpoints.prepare(signature)
            job = ReinforceJob(
                name=NAME,
                config=config,
                stage=stage,
                base_model=base_model,
                rows=corpus.epoch,
                known_positives=ray.put(corpus.known_positives),
                dev_set=ray.put(dev),
                checkpoints=checkpoints.folder,
                signature=signature,
                pool=pool,
            )
            fit(train, job, corpus.dataset, config.rollout.actors)
        finally:
            stop_pool(pool)
            checkpoints.remove_partial()
    with atomic_folder(config.path("model")) as partial:
        checkpoints.export_best(partial)
    checkpoints.finish()
    return {"rows": corpus.rows}


def train(job: ReinforceJob, board: ActorHandle) -> None:
    """Run one rank, from the newest checkpoint or from the beginning, to the last step."""
    run_steps(ReinforceTrainer(job), board)


def _check_settings(config: Config) -> None:
    """Raise DataError for settings that cannot work."""
    stage = config.reinforce
    try:
        for name in stage.rewards.weights():
            load_reward(name)
    except RewardError as error:
        raise DataError(f"reinforce.rewards: {error}") from error
    if stage.batch_size * stage.workers + stage.extra_candidates < 2:
        raise DataError(
            "reinforce ranks each item among one candidate, so every rank is 1: raise reinforce.batch_size or "
            "reinforce.extra_candidates"
        )


def _sampling_signature(config: Config) -> list[Any]:
    """Return the rollout settings that a resumed run must share."""
    rollout = config.rollout
    return [rollout.engine, rollout.temperature, rollout.slack, rollout.dtype]
