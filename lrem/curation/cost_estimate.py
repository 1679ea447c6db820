"""What questions to a language model will cost, from above. Knows settings and lengths; asks nobody."""

from collections.abc import Sequence
from typing import NamedTuple

from lrem.config import LlmConfig
from lrem.data.words import UNSPACED

CHARACTERS_A_TOKEN = 4  # of English text, as tokenizers of tens of thousands of entries cut it; of Chinese, one


class Load(NamedTuple):
    """So many questions of which these messages are a typical one."""

    questions: int
    messages: list[dict[str, str]]


class Cost(NamedTuple):
    """Tokens, money in the unit of the prices, and seconds at the speed that is set."""

    calls: int
    tokens_in: int
    tokens_out: int
    money: float
    seconds: float


def cost(loads: Sequence[Load], llm: LlmConfig) -> Cost:
    """Every answer is reckoned at its full length, max_tokens: what is spent is less.

    >>> told = [Load(1000, [{"role": "user", "content": "q" * 400}])]
    >>> cost(told, LlmConfig(max_tokens=100, price_in=1.0, price_out=4.0, tokens_a_second=1000))
    Cost(calls=1000, tokens_in=100000, tokens_out=100000, money=0.5, seconds=100.0)
    """
    calls = sum(load.questions for load in loads)
    characters = (load.questions * sum(_characters(m["content"]) for m in load.messages) for load in loads)
    tokens_in, tokens_out = sum(characters) // CHARACTERS_A_TOKEN, calls * llm.max_tokens
    money = (tokens_in * llm.price_in + tokens_out * llm.price_out) / 1_000_000
    return Cost(calls, tokens_in, tokens_out, money, tokens_out / llm.tokens_a_second)


def _characters(text: str) -> int:
    """Characters, those of unspaced scripts as many as a token has."""
    unspaced = sum(map(len, UNSPACED.findall(text)))
    return len(text) + (CHARACTERS_A_TOKEN - 1) * unspaced
