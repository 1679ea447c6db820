"""Curation on Ray Data: difficulty → teacher → rules → difference set → judge → split into triplets and RL pairs.

Reads a catalogue, queries and what is known of them; writes triplets.parquet, rl_pairs.parquet, where asked for
dev.parquet and test.parquet, and datasheet.json. Every step works part by part and is resumed by the part; what a
language model answered is kept for good. A query that the retriever serves without help keeps an empty reasoning; one
that the teacher did not reason about, but that has judgements, is left to reinforcement.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lrem.config import Config, LlmConfig
from lrem.curation.answer_parsing import parse_grade, parse_keywords
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import ChatRequest, extraction_request, judge_request, reasoning_request
from lrem.curation.cross_encoder import CrossEncoderJudge
from lrem.curation.curation_run import CurationRun
from lrem.curation.finder import Finder
from lrem.curation.judge import Judge
from lrem.curation.split_assignment import EASY, KEPT
from lrem.curation.teacher import Teacher, token_counter
from lrem.data.files import atomic_file, exclusive_lock, sha256
from lrem.data.schema import ITEMS, QUERIES, open_table, read_items
from lrem.errors import DataError
from lrem.retrieval.retrievers import ResolvedRetriever, resolve_retriever
from ray_apps.cluster import metrics
from ray_apps.cluster.gpus import gpu_count
from ray_apps.cluster.progress import progress
from ray_apps.cluster.session import cluster
from ray_apps.curation import resumable
from ray_apps.curation.inputs import cut
from ray_apps.curation.outputs import finish
from ray_apps.indexing.embed import build_index, embed
from ray_apps.llm.client import ask_model

TEST_SHARE = 0.1  # of queries that bring no split, where curate.test_share does not say
LOCK_TIMEOUT_S = 10.0  # for another curation of the same folder, which takes much longer


def run(config: Config) -> dict[str, Any]:
    """Write triplets and RL pairs; returns the counters.

    Raises:
        DataError: an input cannot be used, a setting lacks its model, or nothing is left to train on.
    """
    config = resolved(config)
    check(config)
    current = curation_run(config)
    folder = current.folder
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder.parent / "lock", LOCK_TIMEOUT_S), cluster(config):
        for other in folder.parent.glob("*"):  # parts of other settings or inputs
            if re.fullmatch("[0-9a-f]{16}", other.name) and other != folder and (other / "input").exists():
                shutil.rmtree(other)
        current = _with_index(current)
        cut(current)
        gpus = 1.0 if gpu_count(config) else 0.0
        retriever_gpus = gpus if current.retriever.model else 0.0
        _forget_failed(folder)
        resumable.run_parts(config, "find", Finder, (current,), folder / "input", folder / "found", retriever_gpus)
        failures = _ask_teacher(current) if config.curate.teacher == "llm" else []
        here = config.curate.teacher == "llm"  # whoever reads the answers has to be on their disk
        resumable.run_parts(
            config, "teach", Teacher, (current,), folder / "found", folder / "taught", retriever_gpus, here
        )
        if config.curate.judge == "llm":
            failures += _ask_judge(current)
        crossing = gpus if config.curate.judge == "cross_encoder" else 0.0
        here = config.curate.judge == "llm"
        resumable.run_parts(config, "judge", Judge, (current,), folder / "taught", folder / "decided", crossing, here)
    _write_failures(failures, config.path("triplets").with_name("dead_letters.jsonl"))
    return finish(current)


def resolved(config: Config) -> Config:
    """The settings with what they leave open: test_share as a number, and folders from the root.

    A Ray worker's working directory is not the caller's.

    Raises:
        DataError: the queries cannot be read, which decide test_share where it is not set.
    """
    update: dict[str, Any] = {}
    if config.curate.test_share is None:
        brings = "split" in open_table(config.path("queries"), QUERIES).schema.names
        update["test_share"] = 0.0 if brings else TEST_SHARE
    specs = {"retriever": config.curate.retriever, "cross_encoder": config.curate.cross_encoder}
    named = {key: Path(spec) for key, spec in specs.items() if spec is not None and spec != "bm25"}
    update |= {key: str(folder.absolute()) for key, folder in named.items() if folder.is_dir()}
    return config.model_copy(update={"curate": config.curate.model_copy(update=update)})


def check(config: Config) -> None:
    """Whether `resolved` settings fit together and what they name can be loaded, before anything is begun.

    Raises:
        DataError: they do not, or it cannot.
    """
    settings = config.curate
    for name, schema in (("queries", QUERIES), ("items", ITEMS)):
        open_table(config.path(name), schema)
    for name in ("triplets", "rl_pairs"):
        if "://" in config.uri(name):
            raise DataError(f"paths.{name} is {config.uri(name)}: curation writes to a disk; copy its files there")
    if settings.rl_share + settings.dev_share + (settings.test_share or 0.0) >= 1:
        raise DataError("curate.rl_share, dev_share and test_share leave nothing for the cold start: lower one")
    if settings.teacher == "file" and not config.path("teacher").exists():
        raise DataError(
            f"{config.path('teacher')} does not exist: set paths.teacher to a file of reasonings, or curate.teacher to "
            "catalogue (needs no model) or llm"
        )
    for part, llm in (("teacher", settings.llm), ("judge", settings.judge_llm)):
        name = "llm" if part == "teacher" else "judge_llm"
        if getattr(settings, part) == "llm" and llm.model is None:
            raise DataError(f"curate.{part} is llm, and no model is named: set curate.{name}.model")
    if settings.judge == "cross_encoder" and settings.cross_encoder is None:
        raise DataError("curate.judge is cross_encoder, and none is named: set curate.cross_encoder")
    if settings.judge == "cross_encoder":
        CrossEncoderJudge(str(settings.cross_encoder))
    token_counter(config.model.source)


def curation_run(config: Config) -> CurationRun:
    """Return the run of `resolved` settings: its work folder and its retriever.

    Raises:
        DataError: the retriever names nothing, or a snapshot of another catalogue.
        SnapshotError: the snapshot cannot be read, or is of another model than paths.model.
    """
    retriever = resolve_retriever(config.curate.retriever, config.path("model"), config.path("items"))
    return CurationRun(config, _work_folder(config, retriever), retriever)


def _work_folder(config: Config, retriever: ResolvedRetriever) -> Path:
    """Return the folder of this run's parts, named by a hash of everything that they depend on."""
    inputs = ["items", "queries", "qrels", *(["teacher"] if config.curate.teacher == "file" else [])]
    unread: Any = {"actors": True, "llm": _HOW, "judge_llm": _HOW, **dict.fromkeys(_SPLIT, True)}
    settings = config.curate.model_dump(mode="json", exclude=unread)
    depends = {
        "version": version("lrem"),
        "settings": settings,
        "budget": config.model.budget,
        "seed": config.seed,
        "source": config.model.source,
        "retriever": retriever.fingerprint,
        "cross_encoder": [sha256(file) for file in _cross_encoder_files(config)],
        "inputs": {name: [sha256(file) for file in _files(config.path(name))] for name in inputs},
    }
    name = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
    return config.path("triplets").parent / "work" / name


_SPLIT = ("rl_share", "dev_share", "test_share", "rl_easy")  # read at the end, when the parts are there
# Settings that say how a model is reached and what that costs, not what it is asked.
_HOW = {"url", "key_variable", "concurrency", "timeout_s", "retries", "actors", "batch_size", "tensor_parallel"} | {
    *("kv_cache_gib", "tokens_a_second", "price_in", "price_out")
}


def _files(path: Path) -> list[Path]:
    """An input's files, where it is a folder: its parts."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] * path.is_file()


def _cross_encoder_files(config: Config) -> list[Path]:
    """Of the cross-encoder that judges, where it is a folder: one that was trained anew judges anew."""
    settings = config.curate
    return _files(Path(str(settings.cross_encoder))) if settings.judge == "cross_encoder" else []


def _with_index(run: CurationRun) -> CurationRun:
    """Build the index of a retriever that is a model folder, unless an earlier start of this run has built it."""
    if run.retriever.model is None or run.retriever.index is not None:
        return run
    vectors, index = run.folder / "retriever" / "vectors", run.folder / "retriever" / "index"
    if not (index / "manifest.json").exists():
        embed(run.config, Path(run.retriever.model), vectors)
        build_index(run.config, vectors, index)
    return run._replace(retriever=replace(run.retriever, index=str(index)))


def _forget_failed(folder: Path) -> None:
    """Parts with queries that a model did not answer are done again; the answers that came are kept."""
    for part in resumable.parts_of(folder / "taught"):
        if resumable.counts_of(part)["failed"]:
            (folder / "decided" / part.name).unlink(missing_ok=True)
            part.unlink()
    for part in resumable.parts_of(folder / "decided"):
        if resumable.counts_of(part)["unjudged"]:
            part.unlink()


Asked = tuple[ChatRequest, dict[str, Any]]  # a question, and the row that it is about


def _ask_teacher(run: CurationRun) -> list[dict[str, Any]]:
    """Both of the teacher's questions about every hard query whose part is not taught yet; returns dead letters."""
    settings = run.config.curate
    parts = [
        part for part in resumable.parts_of(run.folder / "found") if not (run.folder / "taught" / part.name).exists()
    ]
    with AnswerStore(run.answers_file) as answers:

        def first() -> Iterator[Asked]:
            for row in _rows(parts):
                if row["hard"]:
                    yield reasoning_request(settings, row["query"], row["category"]), row

        def second() -> Iterator[Asked]:
            for question, row in first():
                for thought in answers.get([question.key]).values():
                    yield extraction_request(settings, row["query"], thought), row

        return [
            *_ask(run, "teacher, thinking", settings.llm, first, answers),
            *_ask(run, "teacher, keywords", settings.llm, second, answers, parse_keywords),
        ]


def _ask_judge(run: CurationRun) -> list[dict[str, Any]]:
    """The judge's question about every candidate whose part is not decided yet; returns dead letters."""
    settings = run.config.curate
    items = read_items(run.config.path("items"))
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    parts = [
        part for part in resumable.parts_of(run.folder / "taught") if not (run.folder / "decided" / part.name).exists()
    ]

    def questions() -> Iterator[Asked]:
        for row in _rows(parts):
            for item in row["candidates"][: settings.judged_per_query] if row["outcome"] in (KEPT, EASY) else ():
                yield judge_request(settings, row["query"], titles[item]), row | {"item_id": item}

    with AnswerStore(run.answers_file) as answers:
        return _ask(run, "judge", settings.judge_llm, questions, answers, parse_grade)


def _ask(
    run: CurationRun,
    title: str,
    llm: LlmConfig,
    questions: Callable[[], Iterator[Asked]],
    answers: AnswerStore,
    read: Callable[[str], object] = str,
) -> list[dict[str, Any]]:
    """Ask what is not answered; returns the rows without an answer, or with one that `read` refuses, and the reason."""
    total, begun = sum(1 for _ in questions()), time.monotonic()
    with progress(title, run.config.run_dir.name) as board:
        said = 0

        def told(done: int) -> None:
            nonlocal said
            metrics.count("curation_questions", done - said, run=run.config.run_dir.name, stage=title)
            said = done
            board.update.remote(done, total, f"{done / (time.monotonic() - begun):.1f} answers/s")

        failed = ask_model(run.config, llm, (question for question, _ in questions()), answers, told)
    letters = []
    for question, row in questions():
        key = question.key
        if key not in failed and (reason := _refused(read, answers.get([key])[key])):
            failed[key] = reason
            answers.delete([key])  # the next run asks it again
        if key in failed:
            about = {name: row[name] for name in ("query_id", "query", "item_id") if name in row}
            letters.append({"step": title, "reason": failed[key]} | about)
    metrics.count("curation_failures", len(letters), run=run.config.run_dir.name, stage=title)
    return letters


def _refused(read: Callable[[str], object], answer: str) -> str | None:
    try:
        read(answer)
    except ValueError as error:
        return str(error)
    return None


def _rows(parts: list[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from pq.read_table(part).to_pylist()


def _write_failures(failures: list[dict[str, Any]], file: Path) -> None:
    """The dead letters of this run; none: no file."""
    if not failures:
        file.unlink(missing_ok=True)
        return
    with atomic_file(file) as part:
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in failures), encoding="utf-8")
