"""The rollout pool on real engines: the trainer's policy before and after syncs; engines killed, hung, corrupted."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray.actor import ActorHandle

from lrem.config import Config, load_config
from lrem.errors import RolloutError
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.thinking import DecodingPolicy
from lrem.training.rollout import Rollout, SyncReport
from ray_apps.cluster.session import cluster
from ray_apps.rollouts.client import await_pool, get_within, start_pool, stop_pool
from ray_apps.rollouts.engines import Engine, TransformersEngine
from ray_apps.rollouts.weight_sync import WeightSync, check_load_report, pack_state, probe_prompts, state_checksum
from tests.ray.rollouts.policies import QUERIES, assert_same_policy, greedy, log_probs_of

SEEDS = [11, 12, 13, 14]


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with cluster(load_config(None, ["ray.num_cpus=4"])):
        yield


def configured(*more: str) -> Config:
    return load_config(None, ["ray.num_cpus=4", "rollout.batch_size=2", "rollout.probe_tolerance=1e-3", *more])


@pytest.fixture(scope="module")
def pool(tiny_folder: Path) -> Iterator[ActorHandle]:
    """Two vLLM actors."""
    pool = start_pool(tiny_folder, configured("rollout.actors=2"))
    yield pool
    stop_pool(pool)


def engines(pool: ActorHandle) -> list[ActorHandle]:
    return list(ray.get(pool.actors.remote(), timeout=60))


def sample(pool: ActorHandle, n: int = 8) -> list[list[Rollout]]:
    return list(ray.get(pool.sample.remote(QUERIES, n, SEEDS), timeout=120))


def weight_sync(pool: ActorHandle, model: ReasoningEmbedder) -> WeightSync:
    return WeightSync(pool, configured(), model.renderer, lambda batch: model(batch).log_probs)


@torch.no_grad()
def push(pool: ActorHandle, model: ReasoningEmbedder, version: int) -> SyncReport:
    """Push a model's weights, and check the engines' probes against it."""
    return weight_sync(pool, model).push(model.lm.state_dict(), version)


def changed(model: ReasoningEmbedder, folder: Path, seed: int) -> ReasoningEmbedder:
    """Return a copy with every weight changed."""
    copy = ReasoningEmbedder.load(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return copy


def test_every_engine_takes_every_version(pool: ActorHandle, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    """Greedy tokens equal transformers' after each sync, a tied head included; the probe agrees with the trainer."""
    for version, model in ((1, changed(tiny, tiny_folder, 1)), (2, changed(tiny, tiny_folder, 2)), (3, tiny)):
        report = push(pool, model, version)
        assert list(report.loaded) == ["rollout actor 0", "rollout actor 1"]
        for engine in engines(pool):
            assert_same_policy(engine, model)
        assert {rollout.version for group in sample(pool) for rollout in group} == {version}


def test_a_llama_takes_every_version(tiny_llama: ReasoningEmbedder, tmp_path: Path) -> None:
    """A pretrained Llama with its own tokenizer, grouped heads, and a template that begins with BOS."""
    tiny_llama.save(tmp_path / "llama")
    pool = start_pool(tmp_path / "llama", configured())
    try:
        for version, model in ((1, changed(tiny_llama, tmp_path / "llama", 1)), (2, tiny_llama)):
            push(pool, model, version)
            [engine] = engines(pool)
            assert_same_policy(engine, model)
    finally:
        stop_pool(pool)


def test_a_failed_sync_names_the_engine(pool: ActorHandle, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    """A tensor that the trainer does not hold, a byte lost on the way, and an engine left behind."""
    other = ReasoningEmbedder.load(tiny_folder)
    with torch.no_grad():
        other.lm.model.layers[1].self_attn.v_proj.weight[3] += 2.0
        with pytest.raises(RolloutError, match="rollout actor 0 samples another policy than version 4"):
            weight_sync(pool, tiny).push(other.lm.state_dict(), 4)
    broken = pack_state(tiny.lm.state_dict())
    flipped = broken[2].data.copy()
    flipped[17] ^= 1
    broken[2] = broken[2]._replace(data=flipped)
    [report] = get_within([pool.sync.remote([ray.put(broken)], 5)], 60, "a weight sync")
    loaded, checksum = report.loaded["rollout actor 1"], state_checksum(pack_state(tiny.lm.state_dict()))
    with pytest.raises(RolloutError, match="rollout actor 1 holds policy version 5 with checksum"):
        check_load_report("rollout actor 1", loaded, loaded._replace(checksum=checksum), 1e-2)
    with pytest.raises(RolloutError, match=r"rollout actor 1 holds policy version 5 .* version 6 "):
        check_load_report("rollout actor 1", loaded, loaded._replace(version=6), 1e-2)
    push(pool, tiny, 3)


def test_log_probs_are_the_trainers(pool: ActorHandle, tiny: ReasoningEmbedder) -> None:
    """On-policy the ratio is 1 within 1e-3: the sampler and the trainer are the same distribution."""
    groups = sample(pool)
    assert [len(group) for group in groups] == [8] * 4
    prompts = [tiny.renderer.query_prompt(query) for query in QUERIES for _ in range(8)]
    flat = [rollout for group in groups for rollout in group]
    assert len({tuple(rollout.tokens) for rollout in flat}) > 16  # sampled, not repeated
    for rollout, own in zip(flat, log_probs_of(tiny, prompts, flat), strict=True):
        assert ((own - torch.tensor(rollout.log_probs)).exp() - 1).abs().max().item() < 1e-3
        assert len(rollout.tokens) <= tiny.template.budget + 8


def test_seeds_make_samples_repeatable(pool: ActorHandle) -> None:
    """Whichever engine answers."""
    first, again = ([[r.tokens for r in group] for group in sample(pool)] for _ in range(2))
    assert first == again
    other = ray.get(pool.sample.remote(QUERIES, 8, [seed + 1000 for seed in SEEDS]), timeout=60)
    assert [[r.tokens for r in group] for group in other] != first


def test_reasoning_is_closed_at_the_budget(pool: ActorHandle, tiny: ReasoningEmbedder) -> None:
    texts = ray.get(pool.reason.remote(QUERIES, 0.0, None), timeout=60)
    expected = []
    for query in QUERIES:
        tokens = greedy(tiny, [*tiny.renderer.query_prompt(query), tiny.renderer.think], tiny.template.budget)
        ends = [i for i, token in enumerate(tokens) if token in (tiny.renderer.close, tiny.renderer.emb)]
        expected.append(tiny.renderer.thought_text(tokens[: ends[0] + 1] if ends else tokens))
    assert texts == expected


@pytest.mark.slow
def test_a_killed_engine_is_replaced(pool: ActorHandle, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    """Killed while it samples: every query is answered once by the current policy, which the new engine loads."""
    moved = changed(tiny, tiny_folder, 5)
    push(pool, moved, 6)
    queries = [f"{query} {i}" for i in range(40) for query in QUERIES]
    rollouts = pool.sample.remote(queries, 8, list(range(len(queries))))
    time.sleep(0.3)
    os.kill(ray.get(engines(pool)[1].pid.remote(), timeout=60), signal.SIGKILL)
    groups = ray.get(rollouts, timeout=180)
    assert [len(group) for group in groups] == [8] * len(queries)
    assert {rollout.version for group in groups for rollout in group} == {6}
    untouched = ray.get(pool.sample.remote(queries, 8, list(range(len(queries)))), timeout=180)
    assert [[r.tokens for r in group] for group in untouched] == [[r.tokens for r in group] for group in groups]
    for engine in engines(pool):
        assert_same_policy(engine, moved)
    assert push(pool, tiny, 3).restarts == 1


class Slow(TransformersEngine):
    """A real engine that hangs in one of its methods, on request."""

    hanging = ""

    def hang(self, method: str) -> None:
        self.hanging = method

    def sample(self, *arguments: Any) -> list[list[Rollout]]:
        time.sleep(600 if self.hanging == "sample" else 0)
        return super().sample(*arguments)

    def load(self, weights: Any) -> None:
        time.sleep(600 if self.hanging == "load" else 0)
        super().load(weights)


@pytest.fixture
def slow_pool(tiny_folder: Path) -> Iterator[ActorHandle]:
    limits = ["rollout.actors=2", "rollout.timeout_s=15", "rollout.sync_timeout_s=3", "rollout.restarts=1"]
    pool = start_pool(tiny_folder, configured(*limits, f"rollout.engine={__name__}:Slow"))
    yield pool
    stop_pool(pool)


@pytest.mark.slow
def test_a_hung_engine_is_found_by_its_deadline(slow_pool: ActorHandle) -> None:
    ray.get(engines(slow_pool)[0].call.remote("hang", "sample"), timeout=30)
    started = time.monotonic()
    assert [len(group) for group in sample(slow_pool, 2)] == [2] * 4
    assert time.monotonic() - started > 14
    for engine in engines(slow_pool):
        ray.get(engine.call.remote("hang", "sample"), timeout=30)
    rollouts = slow_pool.sample.remote(QUERIES, 2, SEEDS)
    with pytest.raises(RolloutError, match=r"rollout actor \d gave no answer within 15 s in 'sample', after 1 engines"):
        await_pool(slow_pool, rollouts, configured(), "rollouts")


class Refusing(TransformersEngine):
    """A real engine that refuses to sample, like one whose prompts are too long for it."""

    def sample(self, *arguments: Any) -> list[list[Rollout]]:
        raise ValueError("the prompt is longer than 256 tokens")


@pytest.mark.slow
def test_a_call_that_two_engines_refuse_is_an_error(tiny_folder: Path) -> None:
    pool = start_pool(tiny_folder, configured(f"rollout.engine={__name__}:Refusing"))
    try:
        rollouts = pool.sample.remote(QUERIES, 2, SEEDS)
        with pytest.raises(RolloutError, match=r"prompt is longer than 256 tokens.*no other engine would do better"):
            await_pool(pool, rollouts, configured(), "rollouts")
    finally:
        stop_pool(pool)


@pytest.mark.slow
def test_a_sync_that_takes_too_long_names_the_actor(slow_pool: ActorHandle, tiny: ReasoningEmbedder) -> None:
    ray.get(engines(slow_pool)[1].call.remote("hang", "load"), timeout=30)
    with pytest.raises(RolloutError, match="rollout actor 1 did not load policy version 9 within 3 s"):
        push(slow_pool, tiny, 9)


def test_transformers_behind_the_same_interface(tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    engine: Engine = TransformersEngine(str(tiny_folder), configured().rollout)
    prompts = [tiny.renderer.query_prompt(query) for query in QUERIES]
    groups = engine.sample(QUERIES, 4, SEEDS)
    assert groups == engine.sample(QUERIES, 4, SEEDS)
    flat = [rollout for group in groups for rollout in group]
    own = log_probs_of(tiny, [prompt for prompt in prompts for _ in range(4)], flat)
    for rollout, expected in zip(flat, own, strict=True):
        assert rollout.log_probs == pytest.approx(expected.tolist(), abs=1e-4)
        assert tiny.renderer.emb not in rollout.tokens[:-1]
    moved = changed(tiny, tiny_folder, 7)
    packed = pack_state(moved.lm.state_dict())
    report = engine.update_weights(packed, 2)
    assert (report.version, report.checksum) == (2, state_checksum(packed))
    own = log_probs_of(moved, probe_prompts(moved.renderer), report.probe)
    for rollout, expected in zip(report.probe, own, strict=True):
        assert rollout.log_probs == pytest.approx(expected.tolist(), abs=1e-3)
    for prompt, [rollout] in zip(prompts, engine.generate(prompts, 1, 0.0, DecodingPolicy(8)), strict=True):
        assert rollout.tokens == greedy(moved, prompt, 8)


def test_a_wait_names_what_it_waited_for() -> None:
    @ray.remote(num_cpus=0)
    def sleep() -> None:
        time.sleep(30)

    with pytest.raises(TimeoutError, match="0 s for a nap"):
        get_within([sleep.remote()], 0.2, "a nap")
