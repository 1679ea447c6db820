"""Curation's requests to language models: the teacher's two per hard query, the judge's one per candidate.

The answers go to the run's answer store, where the workers read them. A request without a usable answer becomes a dead
letter, and the next run sends it again.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from ray.actor import ActorHandle

from lrem.config import LlmConfig
from lrem.curation.answer_parsing import parse_grade, parse_keywords
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import ChatRequest, extraction_request, judge_request, reasoning_request
from lrem.curation.curation_run import CurationRun
from lrem.curation.judge import judged_items
from lrem.data.files import atomic_file
from lrem.data.schema import read_items
from ray_apps.cluster import metrics
from ray_apps.cluster.progress import progress
from ray_apps.curation.resumable import missing_parts
from ray_apps.llm.client import ask_model


class DeadLetter(NamedTuple):
    """A request without a usable answer: a line of dead_letters.jsonl."""

    step: str
    reason: str
    query_id: str
    query: str
    item_id: str | None  # of a judge's request


class _RowRequest(NamedTuple):
    """A request, and the row of the part that it is about."""

    request: ChatRequest
    row: dict[str, Any]


class _Role(NamedTuple):
    """Who is asked: the title for progress and dead letters, the model, and a parser that rejects unusable answers."""

    title: str
    llm: LlmConfig
    parse: Callable[[str], object]


def ask_teacher(run: CurationRun) -> list[DeadLetter]:
    """Ask the teacher to reason about every hard query without a taught part, then to extract keywords from that."""
    settings = run.config.curate
    parts = missing_parts(run.folder / "found", run.folder / "taught")
    with AnswerStore(run.answers_file) as answers:

        def reasoning_requests() -> Iterator[_RowRequest]:
            for row in _rows(parts):
                if row["hard"]:
                    yield _RowRequest(reasoning_request(settings, row["query"], row["category"]), row)

        def extraction_requests() -> Iterator[_RowRequest]:
            for request, row in reasoning_requests():
                for reasoning in answers.get([request.key]).values():
                    yield _RowRequest(extraction_request(settings, row["query"], reasoning), row)

        thinking = _Role("teacher, thinking", settings.llm, str)
        extracting = _Role("teacher, keywords", settings.llm, parse_keywords)
        dead_letters = _ask(run, thinking, reasoning_requests, answers)
        return dead_letters + _ask(run, extracting, extraction_requests, answers)


def ask_judge(run: CurationRun) -> list[DeadLetter]:
    """Ask the judge to grade the items of every query without a decided part."""
    settings = run.config.curate
    items = read_items(run.config.path("items"))
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    parts = missing_parts(run.folder / "taught", run.folder / "decided")

    def requests() -> Iterator[_RowRequest]:
        for row in _rows(parts):
            for item in judged_items(row, settings):
                yield _RowRequest(judge_request(settings, row["query"], titles[item]), row | {"item_id": item})

    with AnswerStore(run.answers_file) as answers:
        return _ask(run, _Role("judge", settings.judge_llm, parse_grade), requests, answers)


def _ask(
    run: CurationRun, role: _Role, requests: Callable[[], Iterator[_RowRequest]], answers: AnswerStore
) -> list[DeadLetter]:
    """Send the requests that have no answer yet; return those that end without a usable one."""
    total = sum(1 for _ in requests())
    with progress(role.title, run.config.run_dir.name) as board:
        report = _progress_reporter(run, role, total, board)
        failures = ask_model(run.config, role.llm, (request for request, _ in requests()), answers, report)
    dead_letters = []
    for request, row in requests():
        key = request.key
        if key not in failures and (reason := _rejection(role.parse, answers.get([key])[key])):
            failures[key] = reason
            answers.delete([key])  # the next run asks again
        if key in failures:
            letter = DeadLetter(role.title, failures[key], row["query_id"], row["query"], row.get("item_id"))
            dead_letters.append(letter)
    metrics.count("curation_failures", len(dead_letters), run=run.config.run_dir.name, stage=role.title)
    return dead_letters


def _progress_reporter(run: CurationRun, role: _Role, total: int, board: ActorHandle) -> Callable[[int], None]:
    """Return a function that takes the number of requests done, for the metrics and the progress bar."""
    started, counted = time.monotonic(), 0

    def report(done: int) -> None:
        nonlocal counted
        metrics.count("curation_questions", done - counted, run=run.config.run_dir.name, stage=role.title)
        counted = done
        board.update.remote(done, total, f"{done / (time.monotonic() - started):.1f} answers/s")

    return report


def _rejection(parse: Callable[[str], object], answer: str) -> str | None:
    """Return why an answer cannot be used, or None."""
    try:
        parse(answer)
    except ValueError as error:
        return str(error)
    return None


def _rows(parts: list[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from pq.read_table(part).to_pylist()


def write_dead_letters(dead_letters: list[DeadLetter], file: Path) -> None:
    """Write one JSON object per line; delete the file of an earlier run if there are none."""
    if not dead_letters:
        file.unlink(missing_ok=True)
        return
    with atomic_file(file) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for letter in dead_letters:
            fields = {name: value for name, value in letter._asdict().items() if value is not None}
            lines.write(json.dumps(fields, ensure_ascii=False) + "\n")
