"""Reasoning: batches change nothing, the budget and the threshold hold."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.thinking import DecodingPolicy, best_think_below, needs_thinking

QUERIES = ["red coat", "something warm for a long walk in the snow", "hat"]


def test_batches_change_no_reasoning(tiny: ReasoningEmbedder) -> None:
    reasonings = tiny.reason(QUERIES)
    assert reasonings == [tiny.reason([query])[0] for query in QUERIES] == tiny.reason(QUERIES, batch_size=2)
    assert tiny.reason([]) == []


def test_a_reasoning_ends_at_the_budget(tiny: ReasoningEmbedder) -> None:
    short = ReasoningEmbedder(tiny.lm, tiny.tokenizer, replace(tiny.template, budget=2))
    for query, reasoning in zip(QUERIES, short.reason(QUERIES), strict=True):
        assert len(short.renderer.reasoning_ids(reasoning)) <= 2, query


def test_only_queries_below_the_threshold_are_reasoned_over(tiny: ReasoningEmbedder) -> None:
    low, middle, high = sorted(tiny.empty_reasoning_probabilities(QUERIES))
    always = tiny.reason(QUERIES)
    assert tiny.reason(QUERIES, think_below=0.0) == ["", "", ""]
    assert tiny.reason(QUERIES, think_below=1.0) == always
    assert low < middle < high
    routed = tiny.reason(QUERIES, think_below=(low + middle) / 2)
    probabilities = tiny.empty_reasoning_probabilities(QUERIES)
    assert routed == [text if p == low else "" for text, p in zip(always, probabilities, strict=True)]


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.4, 0.7, 0.9, 0.95]), st.integers(-3, 3)), max_size=8))
def test_no_other_threshold_gains_more(queries: list[tuple[float, int]]) -> None:
    def gain(think_below: float) -> int:
        return sum(gain for probability, gain in queries if needs_thinking(probability, think_below))

    chosen = best_think_below([probability for probability, _ in queries], [gain for _, gain in queries])
    assert gain(chosen) == max(map(gain, (0.0, 0.05, 0.2, 0.5, 0.8, 0.92, 1.0)))


def test_decoding_policies(tiny: ReasoningEmbedder) -> None:
    renderer = tiny.renderer
    reasoning, free = DecodingPolicy.reasoning(renderer), DecodingPolicy.reasoning(renderer, must_think=False)
    assert reasoning.stop == free.stop == (renderer.close, renderer.emb)
    assert reasoning.max_tokens == free.max_tokens == tiny.template.budget
    assert {*reasoning.banned} == renderer.special - {renderer.close, renderer.emb}
    assert (reasoning.min_tokens, free.min_tokens, free.banned) == (1, 0, ())
    rollout = DecodingPolicy.rollout(renderer, slack=8)
    assert rollout == DecodingPolicy(tiny.template.budget + 8, (renderer.emb,))


@pytest.mark.parametrize("policy", [DecodingPolicy(8), DecodingPolicy(8, (2, 3), 1, (5,))])
def test_both_engines_get_the_same_limits(policy: DecodingPolicy) -> None:
    vllm, transformers = policy.vllm_arguments(), policy.transformers_arguments()
    assert vllm["max_tokens"] == transformers["max_new_tokens"] == policy.max_tokens
    assert vllm["min_tokens"] == (transformers["min_new_tokens"] or 0) == policy.min_tokens
    assert vllm["stop_token_ids"] == (transformers["eos_token_id"] or []) == [*policy.stop]
    assert [*(vllm["logit_bias"] or {})] == (transformers["suppress_tokens"] or []) == [*policy.banned]
