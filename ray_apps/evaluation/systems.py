"""The systems that evaluation compares, each as runs over the same queries: how they are made, and what that cost.

Each embedding system goes the way of production: vectors, index snapshot, vLLM reasoning, search.
"""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
import torch

from lrem.config import Config
from lrem.curation.answer_parsing import parse_keywords
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import chat_request
from lrem.curation.prompts import rewrite_messages
from lrem.curation.rules import expand_query
from lrem.data.vectors import group_means
from lrem.errors import DataError
from lrem.evaluation.assembly import Outcome
from lrem.evaluation.metrics import Run
from lrem.index.snapshot import load
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from lrem.retrieval.bm25 import Bm25
from lrem.retrieval.retrievers import open_retriever, retriever_kind
from ray_apps.cluster.gpus import plan_gpus
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.progress import console
from ray_apps.cluster.resources import bundle
from ray_apps.indexing.embed import build_index, embed
from ray_apps.llm.client import ask_model
from ray_apps.rollouts.client import await_pool, get_within, start_pool, stop_pool

BATCH = 256  # queries of one call to an actor


class Asked(NamedTuple):
    """The queries, in order, and how deep a run is."""

    ids: list[str]
    texts: list[str]
    depth: int

    def run(self, rankings: list[list[tuple[str, float]]]) -> Run:
        """The queries' rankings as a run."""
        return dict(zip(self.ids, rankings, strict=True))


class Searcher:
    """An actor with one of our models and its index: queries and reasonings in, rankings out."""

    def __init__(self, model: str, index: str, depth: int) -> None:
        self.model = ReasoningEmbedder.load(model).eval()
        if torch.cuda.is_available():
            self.model.cuda()
        self.index, self.depth = load(index, fingerprint(Path(model))), depth

    def chances(self, queries: list[str]) -> list[float]:
        """How sure the model is that each query needs no thought, 0 to 1."""
        return self.model.chances(queries)

    def search(self, queries: list[str], reasonings: list[str | None]) -> list[list[tuple[str, float]]]:
        """The top `depth` items of each query."""
        return self._nearest(self.model.encode_queries(queries, reasonings))

    def search_mean(self, queries: list[str], reasonings: list[list[str]]) -> list[list[tuple[str, float]]]:
        """The same by the mean embedding of several reasonings of each query."""
        texts = [query for query, some in zip(queries, reasonings, strict=True) for _ in some]
        vectors = self.model.encode_queries(texts, [one for some in reasonings for one in some])
        return self._nearest(group_means(vectors, [len(some) for some in reasonings]))

    def cut(self, reasonings: list[str], tokens: int) -> list[str]:
        """Reasonings shortened to so many tokens."""
        renderer = self.model.renderer
        return [renderer.reasoning_text(renderer.reasoning_ids(text)[:tokens]) for text in reasonings]

    def _nearest(self, vectors: np.ndarray) -> list[list[tuple[str, float]]]:
        return [[(hit.item_id, hit.score) for hit in hits] for hits in self.index.search(vectors, self.depth)]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and its seconds."""
    begun = time.monotonic()
    return work(), time.monotonic() - begun


def open_bm25(items: pa.Table, stems: bool = False) -> Bm25:
    """BM25 over the titles, of words as they stand or of their stems."""
    return Bm25(items["item_id"].to_pylist(), items["title"].to_pylist(), stems)


def lexical(bm25: Bm25, asked: Asked, reasonings: list[str] | None = None, before_s: float | None = 0.0) -> Outcome:
    """BM25, of the queries alone or with keywords behind them, which took `before_s` to write, if known."""
    texts = asked.texts if reasonings is None else list(map(expand_query, asked.texts, reasonings))
    found, seconds = timed(lambda: bm25.search(texts, asked.depth))
    thinks = None if reasonings is None else share_of_thoughts(reasonings)
    return Outcome(asked.run(found), None if before_s is None else seconds + before_s, thinks)


def check_folders(folders: list[str], taken: Collection[str]) -> dict[str, str]:
    """Name → folder of sentence-transformers models; each is named by its last part.

    Raises:
        DataError: a folder is no such model, or its name is another system's.
    """
    named: dict[str, str] = {}
    for folder in folders:
        name = Path(folder).name
        if retriever_kind(folder) != "sentence-transformers":
            raise DataError(
                f"evaluate.sentence_transformers: {folder} is no folder of sentence-transformers (modules.json)"
            )
        if not name.strip(".") or name in taken or name in named:
            raise DataError(
                f"evaluate.sentence_transformers: the name of {folder} is another system's: copy or link it"
            )
        named[name] = folder
    return named


def sentence_transformer(config: Config, name: str, folder: str, asked: Asked) -> Outcome:
    """A folder of sentence-transformers."""
    place = config.run_dir / "systems" / name
    embed(config, Path(folder), place / "vectors")
    build_index(config, place / "vectors", place / "index")
    retriever = _actor(_Retrieving).remote(folder, config.path("items"), str(place / "index"))
    try:
        _call(retriever.search.remote(asked.texts[:1], 1), config)  # the model is loaded: a server has it so
        found, seconds = timed(lambda: _in_batches(retriever.search, config, asked.texts, asked.depth))
    finally:
        ray.kill(retriever)
    return Outcome(asked.run(found), seconds)


class _Retrieving:
    def __init__(self, spec: str, items: Path, index: str) -> None:
        self.retriever = open_retriever(spec, items, index)

    def search(self, queries: list[str], k: int) -> list[list[tuple[str, float]]]:
        return self.retriever.search(queries, k)


def prompted(config: Config, bm25: Bm25, asked: Asked) -> Outcome:
    """Prompt-only expansion: a language model's keywords behind the query, into BM25.

    What it costs is not told: the engine's start is part of it, and answers are kept from run to run.

    Raises:
        DataError: no answer could be used.
    """
    llm = config.evaluate.llm
    questions = [chat_request(llm, rewrite_messages(text)) for text in asked.texts]
    with AnswerStore(answers_file(config)) as answers:
        failed = ask_model(config, llm, questions, answers)
        said = answers.get([one.key for one in questions])
    keywords = [_keywords(said.get(one.key, "")) for one in questions]
    if not any(keywords):
        reason = next(iter(failed.values()), "no answer holds keywords")
        raise DataError(f"prompt-only expansion by {llm.model}: all {len(questions)} queries failed: {reason}")
    if missed := sum(not words for words in keywords):
        console.print(f"prompt-only expansion: {missed} of {len(keywords)} queries without keywords", highlight=False)
    return lexical(bm25, asked, keywords)._replace(seconds=None)


def answers_file(config: Config) -> Path:
    """Where the answers of evaluation's language models are kept."""
    return config.run_dir / "answers" / "evaluation.sqlite"


def _keywords(answer: str) -> str:
    """The keywords of an answer; none where there is no answer that can be read."""
    try:
        return parse_keywords(answer)
    except ValueError:
        return ""


def start_searcher(config: Config, name: str, folder: Path, depth: int) -> Any:
    """Start a Searcher; the baselines' catalogues are embedded and indexed first, LREM's index is the one served."""
    index: str | Path = config.uri("index")
    if name != "lrem":
        vectors, index = (config.run_dir / "systems" / name / part for part in ("vectors", "index"))
        embed(config, folder, vectors)
        build_index(config, vectors, index)
    gpus = plan_gpus(config, 1, config.rollout.actors, config.rollout.tensor_parallel).worker_gpus  # engines will come
    wait_for_resources([bundle(1.0, gpus, {})], f"the searcher of {name}", config.ray.start_timeout_s)
    searcher = _actor(Searcher, gpus).remote(str(folder), str(index), depth)
    _call(searcher.search.remote(["warm up"], [None]), config)
    return searcher


def search(config: Config, searcher: Any, asked: Asked, reasonings: list[Any], before_s: float = 0.0) -> Outcome:
    """One of our models, with a reasoning for each query, None for none, or several; they took `before_s` to write."""
    method = searcher.search_mean if isinstance(reasonings[0], list) else searcher.search
    found, seconds = timed(lambda: _in_batches(method, config, asked.texts, reasonings))
    return Outcome(asked.run(found), seconds + before_s, share_of_thoughts(reasonings))


def cut(config: Config, searcher: Any, reasonings: list[str], tokens: int) -> list[str]:
    """Reasonings shortened to so many tokens of the model."""
    return list(_call(searcher.cut.remote(reasonings, tokens), config))


class Thoughts(NamedTuple):
    """A model's reasonings of the queries, greedy, and the seconds that they took.

    always: where it must not think nothing. auto: the same where the service would think (`serve.think_below`), else
    "". sampled: several of each query.
    """

    always: list[str]
    auto: list[str]
    sampled: list[list[str]]
    always_s: float
    auto_s: float


def think(config: Config, folder: Path, searcher: Any, queries: list[str], samples: int) -> Thoughts:
    """Reasonings by the engines of a rollout pool; `samples` of each query at the rollouts' temperature."""
    chances, decided_s = timed(lambda: _in_batches(searcher.chances, config, queries))
    hard = [chance < config.serve.think_below for chance in chances]
    pool = start_pool(folder, config, workers=1, started=True)  # beside the searcher

    def reason(texts: list[str], temperature: float = 0.0, seeds: list[int] | None = None) -> list[str]:
        asked = pool.reason.remote(texts, temperature, seeds, True)
        return list(await_pool(pool, asked, config, "the reasonings")) if texts else []

    try:
        reason(queries[:1])  # the engine is warm
        needed, needed_s = timed(lambda: reason([q for q, is_hard in zip(queries, hard, strict=True) if is_hard]))
        rest, rest_s = timed(lambda: reason([q for q, is_hard in zip(queries, hard, strict=True) if not is_hard]))
        texts = [query for query in queries for _ in range(samples)]
        flat = reason(texts, config.rollout.temperature, [config.seed + i for i in range(len(texts))])
    finally:
        stop_pool(pool)
    thoughts, others = iter(needed), iter(rest)
    always = [next(thoughts if is_hard else others) for is_hard in hard]
    auto = [text if is_hard else "" for text, is_hard in zip(always, hard, strict=True)]
    groups = [flat[i * samples : (i + 1) * samples] for i in range(len(queries))]
    return Thoughts(always, auto, groups, needed_s + rest_s, decided_s + needed_s)


def share_of_thoughts(reasonings: list[Any]) -> float:
    """How many of them say something: what thinking costs."""
    said = [bool(text.strip()) if isinstance(text, str) else bool(text) for text in reasonings]
    return round(sum(said) / max(1, len(said)), 4)


def _actor(kind: type, gpus: float = 0) -> Any:
    return ray.remote(num_cpus=1, num_gpus=gpus)(kind)


def _in_batches(method: Any, config: Config, texts: list[str], more: Any = None) -> list[Any]:
    """What an actor's method returns for all texts; a list in `more` is cut alike, anything else goes along."""
    found: list[Any] = []
    for start in range(0, len(texts), BATCH):
        part = slice(start, start + BATCH)
        rest = () if more is None else (more[part] if isinstance(more, list) else more,)
        found += _call(method.remote(texts[part], *rest), config)
    return found


def _call(reference: Any, config: Config) -> Any:
    what = f"a model to load, or to embed and search {BATCH} queries (rollout.timeout_s)"
    [found] = get_within([reference], config.rollout.timeout_s, what)
    return found
