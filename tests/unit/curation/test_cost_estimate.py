"""The cost of requests to a language model, by hand."""

import pytest

from lrem.config import LlmConfig
from lrem.curation.cost_estimate import LlmWorkload, estimate_cost
from lrem.curation.prompts import judge_messages


def test_cost_by_hand() -> None:
    llm = LlmConfig(max_tokens=50, price_in=2.0, price_out=10.0, tokens_a_second=100.0)
    short, long = ([{"role": "user", "content": "x" * n}] for n in (40, 400))
    cost = estimate_cost([LlmWorkload(300, short), LlmWorkload(7, long)], llm)
    # 12,000 + 2,800 characters, four per token; 307 answers of 50 tokens
    assert (cost.requests, cost.tokens_in, cost.tokens_out) == (307, 3700, 15350)
    assert cost.money == pytest.approx(3700 * 2e-6 + 15350 * 10e-6)
    assert cost.seconds == pytest.approx(153.5)
    assert estimate_cost([], llm) == (0, 0, 0, 0.0, 0.0)


def test_all_messages_of_a_request_count() -> None:
    llm = LlmConfig(max_tokens=50)
    messages = [{"role": "system", "content": "y" * 8}, {"role": "user", "content": "x" * 40}]
    assert estimate_cost([LlmWorkload(1, messages)], llm).tokens_in == 12
    judged = judge_messages("tea", "pot")
    assert estimate_cost([LlmWorkload(1, judged)], llm).tokens_in == len(judged[0]["content"]) // 4
