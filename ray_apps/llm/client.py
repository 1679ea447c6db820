"""Batch LLM client: send many requests over OpenAI-compatible HTTP, or with vLLM on Ray Data.

Every answer is saved as soon as it arrives: one at a time over HTTP, one batch at a time from vLLM. A run that was
killed and is started again therefore sends only the requests without an answer.
"""

import asyncio
from collections.abc import Callable, Iterable

from lrem.config import Config, LlmConfig
from lrem.curation.answer_ledger import AnswerLedger
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import ChatRequest
from lrem.errors import DataError
from ray_apps.llm.http import ask_server


def ask_model(
    config: Config,
    llm: LlmConfig,
    requests: Iterable[ChatRequest],
    answers: AnswerStore,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Send every request that has no answer yet, once, and save each answer in `answers`.

    Args:
        config: read for vLLM only, which runs in the Ray cluster that this process has joined.
        requests: read lazily, at most a thousand ahead.
        on_progress: called with the number of requests settled so far: answered now or earlier, repeated, or failed.

    Returns:
        The failures, key → reason; the next run sends these requests again.

    Raises:
        DataError: a setting is missing or wrong, or the server rejects the key.
        ConnectionError: the server cannot be reached, serves something else, or keeps failing.
        TimeoutError: vLLM gave no answer in time.
    """
    if llm.model is None:
        raise DataError("no language model is configured: set its `model`")
    ledger = AnswerLedger(answers, on_progress)
    if llm.engine == "url":
        asyncio.run(ask_server(llm, ledger, requests))
    else:
        from ray_apps.llm.vllm_batch import ask_vllm  # imports Ray Data and transformers, which HTTP does not need

        ask_vllm(config, llm, ledger, requests)
    return ledger.failures
