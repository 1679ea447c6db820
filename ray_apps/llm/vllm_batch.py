"""Answers from vLLM engines on Ray Data, one batch at a time.

`ray.data.llm` starts its engines anew for every execution of a dataset, which takes half a minute or more, so one
execution takes up to `REQUESTS_PER_EXECUTION` requests. They wait in Ray's object store, spilled to disk when memory
is short; the driver holds one batch and the keys. The driver also builds and tokenizes the prompts, which saves three
stages of actors.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, NamedTuple

import pyarrow as pa
import ray
from ray.data import Dataset, from_arrow_refs
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lrem.config import Config, LlmConfig
from lrem.curation.answer_ledger import AnswerLedger
from lrem.curation.chat_requests import ChatRequest
from lrem.errors import DataError
from ray_apps.cluster.gpus import gpu_count
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.resources import bundle
from ray_apps.llm.failure_reason import failure_reason

REQUESTS_PER_EXECUTION = 100_000
BATCHES_PER_ENGINE = 8  # in an engine at once, so that it never idles while the last requests of a batch finish


def ask_vllm(config: Config, llm: LlmConfig, ledger: AnswerLedger, requests: Iterable[ChatRequest]) -> None:
    """Answer every unanswered request with `llm.actors` engines; start none if all are answered.

    Raises:
        DataError: the tokenizer cannot be loaded, or no machine of the cluster can hold an engine.
        TimeoutError: there was no room for an engine, or no answer, in time.
    """
    unanswered = ledger.unanswered(requests)
    first = next(unanswered, None)
    if first is None:
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(llm.model)
    except (OSError, ValueError) as error:
        raise DataError(f"the tokenizer of {llm.model} cannot be loaded: {error}") from error
    generate, rest = _processor(config, llm), chain([first], unanswered)
    while batches := [
        ray.put(table) for table in _batches(islice(rest, REQUESTS_PER_EXECUTION), tokenizer, llm.batch_size)
    ]:
        rows = generate(from_arrow_refs(batches))
        for block in _completed_blocks(rows, config.ray.start_timeout_s, llm.timeout_s):
            _save(block, ledger)


def _batches(requests: Iterator[ChatRequest], tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[pa.Table]:
    """Yield tables of key, tokenized_prompt; one block per batch, because engines return whole blocks."""
    while batch := list(islice(requests, size)):
        ids = pa.array([tokenize_prompt(request.messages, tokenizer) for request in batch], pa.list_(pa.int32()))
        yield pa.table({"key": [request.key for request in batch], "tokenized_prompt": ids})


def tokenize_prompt(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids up to the model's turn, by its chat template or, without one, as `role: content` lines."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # the template has added its own
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return list(tokenizer("\n".join([*lines, "assistant:"]))["input_ids"])


def _processor(config: Config, llm: LlmConfig) -> Callable[[Dataset], Dataset]:
    """Return a map over up to `llm.actors` engines: key, tokenized_prompt → key, text, tokens, __inference_error__."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig  # slow to import; nothing else here needs it

    gpus = gpu_count(config)
    if 0 < gpus < llm.tensor_parallel:
        raise DataError(
            f"tensor_parallel={llm.tensor_parallel} needs {llm.tensor_parallel} GPUs, the cluster has {gpus}: lower it"
        )
    bundles = [bundle(1.0, float(gpus > 0), config.placement.data)] * llm.tensor_parallel
    wait_for_resources(bundles, f"a vLLM engine of {llm.model}", config.ray.start_timeout_s)
    cpu_variables = {"VLLM_CPU_KVCACHE_SPACE": str(llm.kv_cache_gib), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    sampling = {"temperature": llm.temperature, "max_tokens": llm.max_tokens}
    processor = vLLMEngineProcessorConfig(
        model_source=llm.model,
        engine_kwargs={
            "dtype": llm.dtype,
            "max_model_len": llm.max_model_len,
            "seed": config.seed,
            "tensor_parallel_size": llm.tensor_parallel,
            "enforce_eager": gpus == 0,
            "disable_log_stats": True,
        },
        concurrency=llm.actors,
        batch_size=llm.batch_size,
        max_concurrent_batches=BATCHES_PER_ENGINE,
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,  # vLLM detokenizes
        placement_group_config={"bundles": bundles},
        **({} if gpus else {"runtime_env": {"env_vars": cpu_variables}}),
    )
    return build_processor(
        processor,
        preprocess=lambda row: {"sampling_params": sampling},
        postprocess=_result,
    )


def _result(row: dict[str, Any]) -> dict[str, Any]:
    return {"key": row["key"], "text": row["generated_text"], "tokens": row["num_generated_tokens"]}


class _Wait(NamedTuple):
    """A time limit in seconds, and the settings that it is made of."""

    seconds: float
    settings: str


def _completed_blocks(rows: Dataset, start_s: float, batch_s: float) -> Iterator[pa.Table]:
    """Yield blocks of answers in the order in which they complete.

    A Ray task pulls them because a task can be cancelled for good; a thread would keep calling Ray after its end.

    Raises:
        TimeoutError: no block came in time. Ray Data has no timeout of its own: it waits for ever for an engine that
            hangs, or that no machine has room for.
    """

    def pull() -> Iterator[pa.Table]:
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

    backpressure = {"_generator_backpressure_num_objects": BATCHES_PER_ENGINE}
    blocks = ray.remote(num_cpus=0, max_retries=0, num_returns="streaming", **backpressure)(pull).remote()
    batches_s = BATCHES_PER_ENGINE * batch_s  # as many batches share an engine
    wait = _Wait(start_s + batches_s, f"ray.start_timeout_s + {BATCHES_PER_ENGINE} × timeout_s, for the first batch")
    try:
        while ray.wait([blocks], timeout=wait.seconds)[0]:
            if (block := next(blocks, None)) is None:
                return
            yield ray.get(block)
            wait = _Wait(batches_s, f"{BATCHES_PER_ENGINE} × timeout_s, as that many batches share an engine")
    finally:
        ray.cancel(blocks, force=True)
    raise TimeoutError(
        f"vLLM gave no answer within {wait.seconds:g} s ({wait.settings}): raise these settings, lower batch_size, or "
        "check that the cluster has room for the engine (answers are saved)"
    )


def _save(block: pa.Table, ledger: AnswerLedger) -> None:
    """Record one batch: all its answers in one write, then its failures."""
    rows = block.to_pylist()
    answered = [row for row in rows if not row.get("__inference_error__") and row["text"].strip()]
    ledger.record_answers([(row["key"], row["text"]) for row in answered])
    for row in rows:
        if error := row.get("__inference_error__"):
            ledger.record_failure(row["key"], failure_reason(error))
        elif not row["text"].strip():
            ledger.record_failure(row["key"], f"the answer is empty ({row['tokens']} tokens)")
