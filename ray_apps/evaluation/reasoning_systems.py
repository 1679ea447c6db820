"""Runs of our own models, on the path of production: vectors, index snapshot, reasoning by engines, search."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ray.actor import ActorHandle

from lrem.config import Config
from lrem.evaluation.system_run import SystemRun, reasoned_share, timed
from lrem.modeling.thinking import needs_thinking
from ray_apps.cluster.gpus import plan_gpus
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.resources import bundle
from ray_apps.evaluation.actors import SearchActor, call, call_in_batches, start_actor
from ray_apps.evaluation.query_set import QuerySet
from ray_apps.indexing.embed import build_index, embed
from ray_apps.rollouts.client import await_pool, start_pool, stop_pool


class Reasonings(NamedTuple):
    """A model's greedy reasonings of the queries, with the seconds they took, and sampled ones.

    always: at least one token for each query. auto: the same if the service would reason (`serve.think_below`), else
    "". sampled: several per query. empty_probabilities: by which `auto` decides, see `needs_thinking`.
    """

    always: list[str]
    auto: list[str]
    sampled: list[list[str]]
    empty_probabilities: list[float]
    always_s: float
    auto_s: float


def start_searcher(config: Config, name: str, folder: Path, depth: int) -> ActorHandle:
    """Start a `SearchActor` for a model folder.

    For LREM it loads the index that is served; for the other models the catalogue is embedded and indexed first.
    """
    index: str | Path = config.uri("index")
    if name != "lrem":
        vectors, index = (config.run_dir / "systems" / name / part for part in ("vectors", "index"))
        embed(config, folder, vectors)
        build_index(config, vectors, index)
    # The rollout engines start later, beside the searcher, so its share of a GPU is planned together with theirs.
    gpus = plan_gpus(config, 1, config.rollout.actors, config.rollout.tensor_parallel).worker_gpus
    wait_for_resources([bundle(1.0, gpus, {})], f"the searcher of {name}", config.ray.start_timeout_s)
    searcher = start_actor(SearchActor, str(folder), str(index), depth, gpus=gpus)
    call(searcher.search, config, ["warm up"], [None])
    return searcher


def model_run(
    config: Config,
    searcher: ActorHandle,
    queries: QuerySet,
    reasonings: Sequence[str | list[str] | None],
    reasoning_s: float = 0.0,
) -> SystemRun:
    """Search with one of our models.

    Args:
        reasonings: one entry per query: None embeds the query without one, a list embeds the mean over its reasonings.
        reasoning_s: seconds that writing them took, added to the cost.
    """
    method = searcher.search_mean if isinstance(reasonings[0], list) else searcher.search
    rankings, seconds = timed(lambda: call_in_batches(method, config, queries.texts, reasonings))
    return SystemRun(queries.run(rankings), seconds + reasoning_s, reasoned_share(reasonings))


def truncate(config: Config, searcher: ActorHandle, reasonings: list[str], tokens: int) -> list[str]:
    """Return the reasonings truncated to `tokens` tokens of the model."""
    return list(call(searcher.truncate, config, reasonings, tokens))


def generate_reasonings(
    config: Config, folder: Path, searcher: ActorHandle, queries: list[str], samples: int
) -> Reasonings:
    """Generate reasonings with a rollout pool: greedy ones, and `samples` per query at the rollouts' temperature."""
    probabilities, decision_s = timed(lambda: call_in_batches(searcher.empty_probabilities, config, queries))
    hard = [needs_thinking(probability, config.serve.think_below) for probability in probabilities]
    pool = start_pool(folder, config, workers=1, started=True)  # beside the searcher

    def reason(texts: list[str], temperature: float = 0.0, seeds: list[int] | None = None) -> list[str]:
        reference = pool.reason.remote(texts, temperature, seeds, True)
        return list(await_pool(pool, reference, config, "the reasonings")) if texts else []

    try:
        reason(queries[:1])  # warm the engine up
        hard_texts, hard_s = timed(lambda: reason([q for q, is_hard in zip(queries, hard, strict=True) if is_hard]))
        easy_texts, easy_s = timed(lambda: reason([q for q, is_hard in zip(queries, hard, strict=True) if not is_hard]))
        repeated = [query for query in queries for _ in range(samples)]
        seeds = [config.seed + i for i in range(len(repeated))]
        sampled = reason(repeated, config.rollout.temperature, seeds)
    finally:
        stop_pool(pool)
    of_hard, of_easy = iter(hard_texts), iter(easy_texts)
    always = [next(of_hard if is_hard else of_easy) for is_hard in hard]
    auto = [text if is_hard else "" for text, is_hard in zip(always, hard, strict=True)]
    groups = [sampled[i * samples : (i + 1) * samples] for i in range(len(queries))]
    return Reasonings(always, auto, groups, probabilities, hard_s + easy_s, decision_s + hard_s)
