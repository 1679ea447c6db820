"""An upper bound on what requests to a language model will cost: tokens, money, time."""

from collections.abc import Sequence
from typing import NamedTuple

from lrem.config import LlmConfig
from lrem.curation.prompts import Messages
from lrem.data.words import UNSPACED

CHARACTERS_PER_TOKEN = 4  # English with a vocabulary of tens of thousands; a Chinese character is one token


class LlmWorkload(NamedTuple):
    """A number of requests, and the messages of a typical one."""

    requests: int
    messages: Messages


class LlmCost(NamedTuple):
    """Tokens, money in the currency of the configured prices, and seconds at the configured speed."""

    requests: int
    tokens_in: int
    tokens_out: int
    money: float
    seconds: float


def estimate_cost(workloads: Sequence[LlmWorkload], llm: LlmConfig) -> LlmCost:
    """Bound the cost from above: every answer counts with its maximum length, `max_tokens`.

    >>> workload = LlmWorkload(1000, [{"role": "user", "content": "q" * 400}])
    >>> llm = LlmConfig(max_tokens=100, price_in=1.0, price_out=4.0, tokens_a_second=1000)
    >>> estimate_cost([workload], llm)
    LlmCost(requests=1000, tokens_in=100000, tokens_out=100000, money=0.5, seconds=100.0)
    """
    requests = sum(workload.requests for workload in workloads)
    characters = (work.requests * sum(_weighted_length(m["content"]) for m in work.messages) for work in workloads)
    tokens_in, tokens_out = sum(characters) // CHARACTERS_PER_TOKEN, requests * llm.max_tokens
    money = (tokens_in * llm.price_in + tokens_out * llm.price_out) / 1_000_000
    return LlmCost(requests, tokens_in, tokens_out, money, tokens_out / llm.tokens_a_second)


def _weighted_length(text: str) -> int:
    """Count characters, one of a script without spaces as a whole token's."""
    unspaced = sum(map(len, UNSPACED.findall(text)))
    return len(text) + (CHARACTERS_PER_TOKEN - 1) * unspaced
