"""Asking a language model many questions: at an OpenAI-compatible URL, or by vLLM engines on Ray Data.

Every answer is kept as soon as it has arrived, so a killed run that is started again asks only what is unanswered. At a
URL that is one answer at a time; of vLLM, one batch. Knows chat messages; does not know what the questions are about.

ray.data.llm starts its engines anew for each execution of a dataset, half a minute or more, so one execution takes up
to `EXECUTION` questions. They wait in Ray's object store, on its disks if memory is short: this process holds one batch
of them, and their keys. Prompts are made and tokenised here: three stages of actors fewer to start.
"""

import asyncio
import email.utils
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import httpx
import pyarrow as pa

from lrem.config import Config, LlmConfig
from lrem.curation.answers import Answers, Books, Question
from lrem.errors import DataError

if TYPE_CHECKING:
    from ray.data import Dataset
    from transformers import PreTrainedTokenizerBase

EXECUTION = 100_000  # questions of one Ray Data execution, which starts its engines
BATCHES = 8  # that an engine works on at once, so that the end of one leaves no gap
CONNECT_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0  # before the first repetition of a request, and before any
LONGEST_PAUSE_S = 600.0  # that a server may ask for; beyond, the run ends, to be started again later
LATER, NOT_HERE = {408, 409, 425, 429}, {301, 302, 303, 307, 308, 404, 405}  # later: all from 500 on too
GIVEN_UP = 20  # questions in a row, at least, that end the run
SAID = 300  # characters of a server's message that are told on


def ask(
    config: Config,
    llm: LlmConfig,
    questions: Iterable[Question],
    answers: Answers,
    told: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Put the answer of each question into `answers`; what is there, or repeated, is not asked.

    Args:
        config: for vLLM, which runs in the Ray that this process has joined.
        questions: read as they are needed, never many at a time.
        told: is called with how many questions are settled so far: answered now or before, repeated, or failed.

    Returns:
        The failures, key → reason; the next run asks these again.

    Raises:
        DataError: a setting is missing or wrong, or the server rejects the key.
        ConnectionError: the server cannot be reached, has nothing at this address, or fails again and again.
        TimeoutError: vLLM gave no answer in time.
    """
    if llm.model is None:
        raise DataError("no language model is named: set its `model`")
    books = Books(answers, told)
    if llm.engine == "url":
        asyncio.run(_ask_url(llm, books, questions))
    else:
        _ask_vllm(config, llm, books, questions)
    return books.failures


class _Refused(Exception):
    """A question that will get no answer, however often it is asked."""


class _Later(Exception):
    """A request that may be answered another time; `after` seconds at the earliest, if the server said so."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


async def _ask_url(llm: LlmConfig, books: Books, questions: Iterable[Question]) -> None:
    if llm.url is None or httpx.URL(llm.url).scheme not in ("http", "https"):
        raise DataError(f"'{llm.url}' is no address of a language model: set its `url`, as http://host:8000/v1")
    key = os.environ.get(llm.key_variable, "").strip()
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    limits = httpx.Limits(max_connections=llm.concurrency, max_keepalive_connections=llm.concurrency)
    timeout = httpx.Timeout(None, connect=min(CONNECT_S, llm.timeout_s))  # the whole request has its own
    async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout) as client:
        server = _Server(client, llm, key, books)
        source = books.unasked(questions)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(llm.concurrency):
                    group.create_task(server.work(source))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the first; the others were cancelled for it


class _Server:
    """The requests to one URL: their repetitions, their pauses, and when to give up altogether."""

    def __init__(self, client: httpx.AsyncClient, llm: LlmConfig, key: str, books: Books) -> None:
        self.client, self.llm, self.key, self.books = client, llm, key, books
        self.url = f"{(llm.url or '').rstrip('/')}/chat/completions"
        self.reached = self.accepted = False  # whether it has answered anything, and any question
        self.given_up = 0  # questions in a row
        self.quiet_until = 0.0  # of the loop's clock

    async def work(self, questions: Iterator[Question]) -> None:
        """Settle one question after the other; several workers share the iterator."""
        for question in questions:
            await self._settle(question)

    async def _settle(self, question: Question) -> None:
        for attempt in range(self.llm.retries + 1):
            await self._pause()
            try:
                text = await self._once(question)
            except _Refused as error:
                self.given_up = 0
                return self.books.failed(question.key, str(error))
            except _Later as error:
                reason = str(error)
                self._quiet(error.after)
                if attempt < self.llm.retries:
                    wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt)
                    await asyncio.sleep(random.uniform(0.5, 1.0) * wait)
            else:
                self.given_up = 0
                return self.books.answered([(question.key, text)])
        return self._give_up(question, reason)

    def _give_up(self, question: Question, reason: str) -> None:
        self.books.failed(question.key, reason)
        self.given_up += 1
        if not self.reached:
            raise ConnectionError(f"no answer from {self.url} ({reason}): is the server up, and the address right?")
        if self.given_up >= max(GIVEN_UP, 2 * self.llm.concurrency):  # each was asked again and again
            raise ConnectionError(
                f"{self.url} left {self.given_up} questions in a row without an answer, the last with {reason}: look "
                "after the server, or raise timeout_s or retries, and run this again; answers are kept"
            )

    async def _once(self, question: Question) -> str:
        """One request, one answer. Raises _Refused, _Later, or what ends the run."""
        llm = self.llm
        body: dict[str, Any] = {"model": llm.model, "messages": question.messages}
        body |= {"temperature": llm.temperature, "max_tokens": llm.max_tokens}
        try:
            async with asyncio.timeout(llm.timeout_s):
                answer = await self.client.post(self.url, content=json.dumps(body))
        except TimeoutError:
            self.reached = True  # it took the connection
            raise _Later(f"no answer within timeout_s={llm.timeout_s:g} s") from None
        except httpx.RequestError as error:
            raise _Later(f"{type(error).__name__}: {error}") from None
        self.reached = True
        return self._read(answer)

    def _read(self, answer: httpx.Response) -> str:
        status = answer.status_code
        if status == 200:
            self.accepted = True
            return _content(answer)
        message = f"{status}: {self._message(answer)}"
        if status in (401, 403):
            had = "was refused" if self.key else "is not set"
            raise DataError(f"{self.url} answered {message}; the key in ${self.llm.key_variable} {had}: set it right")
        if status in NOT_HERE and not self.accepted:
            raise ConnectionError(f"{self.url} answered {message}; check `url` and `model`")
        if status in LATER or status >= 500:
            raise _Later(message, _retry_after(answer) if status in (429, 503) else 0.0)
        raise _Refused(message)

    def _message(self, answer: httpx.Response) -> str:
        """What the server says, on one line; some repeat the key that they were sent."""
        try:
            said = answer.json()
            said = said.get("error", said.get("detail", said))
            said = said.get("message", said) if isinstance(said, dict) else said
        except (ValueError, AttributeError):
            said = answer.text
        text = " ".join(str(said).split())
        return (text.replace(self.key, "***") if self.key else text)[:SAID]

    def _quiet(self, seconds: float) -> None:
        """Nobody asks for so long."""
        if seconds > LONGEST_PAUSE_S:
            raise ConnectionError(f"{self.url} wants a pause of {seconds:.0f} s: run this again then; answers are kept")
        self.quiet_until = max(self.quiet_until, asyncio.get_running_loop().time() + seconds)

    async def _pause(self) -> None:
        while (left := self.quiet_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left + random.uniform(0.0, min(1.0, left)))  # not all in the same moment


def _content(answer: httpx.Response) -> str:
    try:
        choice = answer.json()["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Refused(f"the answer is no chat completion: {' '.join(answer.text.split())[:SAID]}") from None
    if not isinstance(text, str) or not text.strip():
        raise _Refused(f"the answer is empty (finish_reason {finish})")
    return text


def _retry_after(answer: httpx.Response) -> float:
    """Seconds, as the header gives them or the time that it names; 0 without one."""
    value = answer.headers.get("retry-after", "").strip()
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0


def _ask_vllm(config: Config, llm: LlmConfig, books: Books, questions: Iterable[Question]) -> None:
    source = books.unasked(questions)
    first = next(source, None)
    if first is None:
        return  # and nothing is started
    import ray.data  # here: asking a URL needs neither
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(llm.model)
    except (OSError, ValueError) as error:
        raise DataError(f"the tokenizer of {llm.model} cannot be loaded: {error}") from error
    engines, rest = _engines(config, llm), chain([first], source)
    while batches := [ray.put(table) for table in _batches(islice(rest, EXECUTION), tokenizer, llm.batch_size)]:
        rows = engines(ray.data.from_arrow_refs(batches))
        for arrived in _arriving(rows, config.ray.start_timeout_s, llm.timeout_s):
            _keep(arrived, books)


def _batches(questions: Iterator[Question], tokenizer: "PreTrainedTokenizerBase", size: int) -> Iterator[pa.Table]:
    """key, tokenized_prompt; a block of its own for each batch, as answers leave an engine by blocks."""
    while part := list(islice(questions, size)):
        ids = pa.array([prompt(question.messages, tokenizer) for question in part], pa.list_(pa.int32()))
        yield pa.table({"key": [question.key for question in part], "tokenized_prompt": ids})


def prompt(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids up to where the model starts to answer: by its chat template, else plain lines of role and text."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # the template has put its own
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return list(tokenizer("\n".join([*lines, "assistant:"]))["input_ids"])


def _engines(config: Config, llm: LlmConfig) -> "Callable[[Dataset], Dataset]":
    """Up to `actors` vLLM engines: key, tokenized_prompt → key, text, tokens, and __inference_error__."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from ray_apps.cluster.gpus import gpu_count
    from ray_apps.cluster.placement import wait_for_resources
    from ray_apps.cluster.resources import bundle

    gpus = gpu_count(config)
    if 0 < gpus < llm.tensor_parallel:
        raise DataError(f"tensor_parallel={llm.tensor_parallel} needs as many GPUs, there are {gpus}: lower it")
    cpu_env = {"VLLM_CPU_KVCACHE_SPACE": str(llm.kv_cache_gib), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    bundles = [bundle(1.0, float(gpus > 0), config.placement.data)] * llm.tensor_parallel
    wait_for_resources(bundles, f"a vLLM engine of {llm.model}", config.ray.start_timeout_s)
    engine: dict[str, Any] = {"dtype": llm.dtype, "max_model_len": llm.max_model_len, "seed": config.seed}
    engine |= {"tensor_parallel_size": llm.tensor_parallel, "enforce_eager": gpus == 0, "disable_log_stats": True}
    sampling = {"temperature": llm.temperature, "max_tokens": llm.max_tokens}
    settings = vLLMEngineProcessorConfig(
        model_source=llm.model,
        engine_kwargs=engine,
        concurrency=llm.actors,
        batch_size=llm.batch_size,
        max_concurrent_batches=BATCHES,
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,  # vLLM's own
        placement_group_config={"bundles": bundles},
        **({} if gpus else {"runtime_env": {"env_vars": cpu_env}}),
    )
    return build_processor(
        settings,
        preprocess=lambda row: {"sampling_params": sampling},
        postprocess=_result,
    )


def _result(row: dict[str, Any]) -> dict[str, Any]:
    return {"key": row["key"], "text": row["generated_text"], "tokens": row["num_generated_tokens"]}


def _arriving(rows: "Dataset", start_s: float, batch_s: float) -> Iterator[pa.Table]:
    """Blocks of answers in the order in which they are ready.

    A task of Ray's pulls them: it can be ended for good. A thread cannot, and goes on asking Ray after its end.

    Raises:
        TimeoutError: none came in time. Ray Data has no timeout of its own: with an engine that hangs, or that no
            machine has room for, it waits for ever.
    """
    import ray

    def pull() -> "Iterator[pa.Table]":
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)

    backpressure = {"_generator_backpressure_num_objects": BATCHES}
    answers = ray.remote(num_cpus=0, max_retries=0, num_returns="streaming", **backpressure)(pull).remote()
    wait_s, waited_for = start_s + BATCHES * batch_s, f"the first answers: ray.start_timeout_s + {BATCHES} × timeout_s"
    try:
        while ray.wait([answers], timeout=wait_s)[0]:
            if (block := next(answers, None)) is None:
                return
            yield ray.get(block)
            wait_s, waited_for = BATCHES * batch_s, f"{BATCHES} × timeout_s, as so many batches share an engine"
    finally:
        ray.cancel(answers, force=True)
    raise TimeoutError(
        f"vLLM gave no answer within {wait_s:g} s ({waited_for}); what was answered is kept: raise them, lower "
        "batch_size, or see whether the cluster has room for the engine"
    )


def _keep(block: pa.Table, books: Books) -> None:
    """One batch: its answers at once, then its failures."""
    rows = block.to_pylist()
    good = [row for row in rows if not row.get("__inference_error__") and row["text"].strip()]
    books.answered([(row["key"], row["text"]) for row in good])
    for row in rows:
        if error := row.get("__inference_error__"):
            books.failed(row["key"], " ".join(error.split())[:SAID])
        elif not row["text"].strip():
            books.failed(row["key"], f"the answer is empty ({row['tokens']} tokens)")
