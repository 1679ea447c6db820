"""Requests to a language model, each with the key under which its answer is stored."""

import hashlib
import json
from typing import NamedTuple

from lrem.config import CurateConfig, LlmConfig
from lrem.curation.prompts import Messages, extraction_messages, judge_messages, reasoning_messages


class ChatRequest(NamedTuple):
    """Chat messages, each with `role` and `content`, and the key of their answer."""

    key: str
    messages: Messages


def request_key(model: str, messages: Messages, temperature: float, max_tokens: int) -> str:
    """Hash everything that an answer depends on to 32 hexadecimal digits.

    >>> messages = [{"role": "user", "content": "tea?"}]
    >>> request_key("m", messages, 0, 8) == request_key("m", messages, 0.0, 8) != request_key("m", messages, 0.7, 8)
    True
    """
    payload = json.dumps([model, messages, float(temperature), int(max_tokens)], sort_keys=True)
    return hashlib.blake2b(payload.encode(), digest_size=16).hexdigest()


def chat_request(llm: LlmConfig, messages: Messages) -> ChatRequest:
    """Return the request that sends `messages` to a language model with these settings."""
    return ChatRequest(request_key(llm.model or "", messages, llm.temperature, llm.max_tokens), messages)


def reasoning_request(settings: CurateConfig, query: str, category: str | None) -> ChatRequest:
    """Return the teacher's first request: reason freely about a query."""
    return chat_request(settings.llm, reasoning_messages(query, category))


def extraction_request(settings: CurateConfig, query: str, reasoning: str) -> ChatRequest:
    """Return the teacher's second request: extract keywords from its free reasoning."""
    return chat_request(settings.llm, extraction_messages(query, reasoning))


def judge_request(settings: CurateConfig, query: str, title: str) -> ChatRequest:
    """Return the judge's request: grade how well an item satisfies a query."""
    return chat_request(settings.judge_llm, judge_messages(query, title))
