"""The rollout pool on real engines: same policy as the trainer, before and after syncs; killed, hung, corrupted."""

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
from lrem.modeling.sequences import pad
from lrem.training.rollout import LoadReport, Rollout
from ray_apps.cluster.session import cluster
from ray_apps.rollouts.client import await_pool, get_within, start_pool, stop_pool
from ray_apps.rollouts.engines import Engine, TransformersEngine, probe_prompts
from ray_apps.rollouts.pool import check_load_report
from ray_apps.rollouts.weight_sync import pack_state, state_checksum

QUERIES = ["red coat", "warm hat, not silk", "blue", "something for the winter"]
SEEDS = [11, 12, 13, 14]


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with cluster(load_config(None, ["ray.num_cpus=4"])):
        yield


def configured(*more: str) -> Config:
    return load_config(None, ["ray.num_cpus=4", "rollout.batch_size=2", *more])


@pytest.fixture(scope="module")
def pool(tiny_folder: Path) -> Iterator[ActorHandle]:
    """Two vLLM actors."""
    made = start_pool(tiny_folder, configured("rollout.actors=2"))
    yield made
    stop_pool(made)


def engines(pool: ActorHandle) -> list[ActorHandle]:
    return list(ray.get(pool.actors.remote(), timeout=60))


def sample(pool: ActorHandle, n: int = 8) -> list[list[Rollout]]:
    return list(ray.get(pool.sample.remote(QUERIES, n, SEEDS), timeout=120))


def push(pool: ActorHandle, model: ReasoningEmbedder, version: int) -> Any:
    weights = pack_state(model.lm.state_dict())
    asked = pool.sync.remote([ray.put(weights)], version)
    return await_pool(pool, asked, configured(), "a weight sync"), state_checksum(weights)


def greedy(model: ReasoningEmbedder, prompt: list[int], length: int) -> list[int]:
    """transformers' own generation, to be compared with."""
    ids = torch.tensor([prompt])
    out = model.lm.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=length,
        eos_token_id=None,
        pad_token_id=model.tokenizer.pad_token_id,
    )
    return [int(token) for token in out[0, len(prompt) :]]


def changed(model: ReasoningEmbedder, folder: Path, seed: int) -> ReasoningEmbedder:
    """A copy whose every weight has moved."""
    copy = ReasoningEmbedder.load(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return copy


def assert_same_policy(engine: ActorHandle, model: ReasoningEmbedder) -> None:
    prompts = [model.renderer.query_prompt(query) for query in QUERIES]
    groups = ray.get(engine.call.remote("generate", prompts, 1, 0.0, 16, [model.renderer.emb]), timeout=60)
    for prompt, [rollout] in zip(prompts, groups, strict=True):
        expected = greedy(model, prompt, 16)
        stop = expected.index(model.renderer.emb) + 1 if model.renderer.emb in expected else 16
        assert rollout.tokens == expected[:stop]


def log_probs_of(model: ReasoningEmbedder, prompts: list[list[int]], rollouts: list[Rollout]) -> list[torch.Tensor]:
    rows = [prompt + rollout.tokens for prompt, rollout in zip(prompts, rollouts, strict=True)]
    spans = [(len(prompt), len(row)) for prompt, row in zip(prompts, rows, strict=True)]
    with torch.no_grad():
        found = model(pad(rows, spans)).log_probs
    return [found[i, start:end] for i, (start, end) in enumerate(spans)]


def expected_of(model: ReasoningEmbedder, loaded: LoadReport, version: int, sent: int) -> LoadReport:
    own = log_probs_of(model, probe_prompts(model.renderer), loaded.probe)
    probe = [Rollout(r.tokens, lp.tolist(), version) for r, lp in zip(loaded.probe, own, strict=True)]
    return LoadReport(version, sent, probe)


def test_every_engine_takes_every_version(pool: ActorHandle, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    """Greedy tokens equal transformers' after each sync, a tied head included; the probe agrees with the trainer."""
    for version, model in ((1, changed(tiny, tiny_folder, 1)), (2, changed(tiny, tiny_folder, 2)), (3, tiny)):
        synced, sent = push(pool, model, version)
        assert list(synced.loaded) == ["rollout actor 0", "rollout actor 1"]
        for name, loaded in synced.loaded.items():
            check_load_report(name, loaded, expected_of(model, loaded, version, sent), 1e-3)
        for engine in engines(pool):
            assert_same_policy(engine, model)
        assert {rollout.version for group in sample(pool) for rollout in group} == {version}


def test_the_probe_tells_another_policy(pool: ActorHandle, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    """A tensor that is not what the trainer holds, a byte lost on the way, and an engine left behind: each is named."""
    other = ReasoningEmbedder.load(tiny_folder)
    with torch.no_grad():
        other.lm.model.layers[1].self_attn.v_proj.weight[3] += 2.0
    synced, sent = push(pool, other, 4)
    loaded = synced.loaded["rollout actor 1"]
    with pytest.raises(RolloutError, match="rollout actor 1 samples another policy than version 4"):
        check_load_report("rollout actor 1", loaded, expected_of(tiny, loaded, 4, sent), 1e-2)
    broken = pack_state(tiny.lm.state_dict())
    name, kind, shape, data = broken[2]
    flipped = data.copy()
    flipped[17] ^= 1
    broken[2] = (name, kind, shape, flipped)
    [synced] = get_within([pool.sync.remote([ray.put(broken)], 5)], 60, "a weight sync")
    loaded, sent = synced.loaded["rollout actor 0"], state_checksum(pack_state(tiny.lm.state_dict()))
    with pytest.raises(RolloutError, match="rollout actor 0 holds policy version 5 with checksum"):
        check_load_report("rollout actor 0", loaded, expected_of(tiny, loaded, 5, sent), 1e-2)
    with pytest.raises(RolloutError, match=r"holds policy version 5 .* version 6 .*: the weight sync failed"):
        check_load_report("rollout actor 0", loaded, expected_of(tiny, loaded, 6, loaded.checksum), 1e-2)
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
        body = tokens[: ends[0]] if ends else tokens
        expected.append(tiny.renderer.reasoning_text([t for t in body if t not in tiny.renderer.special]))
    assert texts == expected


def test_a_killed_engine_is_replaced(pool: ActorHandle, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    """Killed while it samples: every query is answered, once, by the present policy; the new engine has its weights."""
    moved = changed(tiny, tiny_folder, 5)
    push(pool, moved, 6)
    queries = [f"{query} {i}" for i in range(40) for query in QUERIES]
    asked = pool.sample.remote(queries, 8, list(range(len(queries))))
    time.sleep(0.3)
    os.kill(ray.get(engines(pool)[1].pid.remote(), timeout=60), signal.SIGKILL)
    groups = ray.get(asked, timeout=180)
    assert [len(group) for group in groups] == [8] * len(queries)
    assert {rollout.version for group in groups for rollout in group} == {6}
    untouched = ray.get(pool.sample.remote(queries, 8, list(range(len(queries)))), timeout=180)
    assert [[r.tokens for r in group] for group in untouched] == [[r.tokens for r in group] for group in groups]
    for engine in engines(pool):
        assert_same_policy(engine, moved)
    synced, _ = push(pool, tiny, 3)
    assert synced.restarts == 1


class Slow(TransformersEngine):
    """A real engine that stops answering: when told to, at what it is told."""

    stuck = ""

    def hang(self, what: str) -> None:
        self.stuck = what

    def sample(self, *arguments: Any) -> list[list[Rollout]]:
        time.sleep(600 if self.stuck == "sample" else 0)
        return super().sample(*arguments)

    def load(self, weights: Any) -> None:
        time.sleep(600 if self.stuck == "load" else 0)
        super().load(weights)


@pytest.fixture
def slow_pool(tiny_folder: Path) -> Iterator[ActorHandle]:
    more = ["rollout.actors=2", "rollout.timeout_s=15", "rollout.sync_timeout_s=3", "rollout.restarts=1"]
    made = start_pool(tiny_folder, configured(*more, f"rollout.engine={__name__}:Slow"))
    yield made
    stop_pool(made)


@pytest.mark.slow
def test_a_hung_engine_is_found_by_its_deadline(slow_pool: ActorHandle) -> None:
    ray.get(engines(slow_pool)[0].call.remote("hang", "sample"), timeout=30)
    started = time.monotonic()
    assert [len(group) for group in sample(slow_pool, 2)] == [2] * 4
    assert time.monotonic() - started > 14
    for engine in engines(slow_pool):
        ray.get(engine.call.remote("hang", "sample"), timeout=30)
    asked = slow_pool.sample.remote(QUERIES, 2, SEEDS)
    with pytest.raises(RolloutError, match=r"rollout actor \d gave no answer within 15 s when asked to sample, and 1 "):
        await_pool(slow_pool, asked, configured(), "rollouts")


class Refusing(TransformersEngine):
    """A real engine that will not sample, as one whose prompts are too long for it."""

    def sample(self, *arguments: Any) -> list[list[Rollout]]:
        raise ValueError("the prompt is longer than 256 tokens")


@pytest.mark.slow
def test_what_every_engine_refuses_is_not_asked_of_all(tiny_folder: Path) -> None:
    pool = start_pool(tiny_folder, configured(f"rollout.engine={__name__}:Refusing"))
    try:
        asked = pool.sample.remote(QUERIES, 2, SEEDS)
        with pytest.raises(RolloutError, match=r"prompt is longer than 256 tokens.*no other engine would do better"):
            await_pool(pool, asked, configured(), "rollouts")
    finally:
        stop_pool(pool)


@pytest.mark.slow
def test_a_sync_that_takes_too_long_names_the_actor(slow_pool: ActorHandle, tiny: ReasoningEmbedder) -> None:
    ray.get(engines(slow_pool)[1].call.remote("hang", "load"), timeout=30)
    with pytest.raises(RolloutError, match="rollout actor 1 did not take policy version 9 within 3 s"):
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
    loaded = engine.update_weights(pack_state(moved.lm.state_dict()), 2)
    check_load_report(
        "engine", loaded, expected_of(moved, loaded, 2, state_checksum(pack_state(moved.lm.state_dict()))), 1e-3
    )
    for prompt, [rollout] in zip(prompts, engine.generate(prompts, 1, 0.0, 8, []), strict=True):
        assert rollout.tokens == greedy(moved, prompt, 8)


def test_a_wait_names_what_it_waited_for() -> None:
    @ray.remote(num_cpus=0)
    def sleep() -> None:
        time.sleep(30)

    with pytest.raises(TimeoutError, match="waited 0 s for a nap"):
        get_within([sleep.remote()], 0.2, "a nap")
