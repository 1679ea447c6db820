"""vLLM actors against transformers: same greedy tokens, same log-probabilities, before and after a weight sync."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from ray.actor import ActorHandle

from lrem.config import Config, load_config
from lrem.model import ReasoningEmbedder
from lrem.sequences import pad
from ray_apps.cluster import cluster
from ray_apps.rollout import start_engines, wait

QUERIES = ["red coat", "warm hat, not silk", "blue", "something for the winter"]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(None, ["ray.num_cpus=4"])


@pytest.fixture(scope="module")
def engine(config: Config, tiny_folder: Path) -> Iterator[ActorHandle]:
    with cluster(config):
        [actor] = start_engines(tiny_folder, config)
        yield actor


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
    groups = ray.get(engine.generate.remote(prompts, 1, 0.0, 16, [model.renderer.emb]), timeout=60)
    for prompt, [rollout] in zip(prompts, groups, strict=True):
        expected = greedy(model, prompt, 16)
        stop = expected.index(model.renderer.emb) + 1 if model.renderer.emb in expected else 16
        assert rollout.tokens == expected[:stop]


def test_greedy_tokens_after_weight_syncs(
    engine: ActorHandle, tiny: ReasoningEmbedder, tiny_folder: Path, config: Config
) -> None:
    assert_same_policy(engine, tiny)
    for version, model in ((1, changed(tiny, tiny_folder, 1)), (2, changed(tiny, tiny_folder, 2)), (3, tiny)):
        weights = ray.put(list(model.lm.state_dict().items()))
        assert wait([engine.update_weights.remote(weights, version)], 60, "a weight sync") == [version]
        assert_same_policy(engine, model)
        [[rollout]] = ray.get(engine.sample.remote(["hat"], 1), timeout=60)
        assert rollout.version == version


def test_log_probs_are_the_trainers(engine: ActorHandle, tiny: ReasoningEmbedder) -> None:
    """On-policy the ratio is 1 within 1e-3: the sampler and the trainer are the same distribution."""
    groups = ray.get(engine.sample.remote(QUERIES, 8), timeout=60)
    prompts = [tiny.renderer.query_prompt(query) for query in QUERIES]
    rows = [(p, rollout) for p, group in zip(prompts, groups, strict=True) for rollout in group]
    assert [len(group) for group in groups] == [8] * 4
    assert len({tuple(rollout.tokens) for _, rollout in rows}) > 16  # sampled, not repeated
    batch = pad([p + r.tokens for p, r in rows], [(len(p), len(p) + len(r.tokens)) for p, r in rows])
    with torch.no_grad():
        log_probs = tiny(batch).log_probs
    for (prompt, rollout), got in zip(rows, log_probs, strict=True):
        own = got[len(prompt) : len(prompt) + len(rollout.tokens)]
        ratio = (own - torch.tensor(rollout.log_probs)).exp()
        assert (ratio - 1).abs().max().item() < 1e-3
        budget = tiny.template.budget
        assert len(rollout.tokens) <= budget + 8


def test_reasoning_is_closed_at_the_budget(engine: ActorHandle, tiny: ReasoningEmbedder) -> None:
    texts = ray.get(engine.reason.remote(QUERIES), timeout=60)
    expected = []
    for query in QUERIES:
        tokens = greedy(tiny, [*tiny.renderer.query_prompt(query), tiny.renderer.think], tiny.template.budget)
        ends = [i for i, token in enumerate(tokens) if token in (tiny.renderer.close, tiny.renderer.emb)]
        body = tokens[: ends[0]] if ends else tokens
        expected.append(tiny.renderer.reasoning_text([t for t in body if t not in tiny.renderer.special]))
    assert texts == expected


def test_a_wait_names_what_it_waited_for(engine: ActorHandle) -> None:
    @ray.remote(num_cpus=0)
    def sleep() -> None:
        import time

        time.sleep(30)

    with pytest.raises(TimeoutError, match="waited 0 s for a nap"):
        wait([sleep.remote()], 0.2, "a nap")
