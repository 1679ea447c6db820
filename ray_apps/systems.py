"""The systems that evaluation compares, each as runs over the same queries: how they are made, and what that cost.

Each embedding system goes the way of production: vectors, index snapshot, vLLM reasoning, search.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray

from lrem.config import Config
from lrem.curation.answers import Answers, Question, question_key
from lrem.curation.prompts import parse_keywords, rewrite_messages
from lrem.curation.rules import expand
from lrem.evaluation.assembly import Outcome
from lrem.evaluation.metrics import Run
from lrem.index.snapshot import load
from lrem.lexical import Bm25
from lrem.model import ReasoningEmbedder, fingerprint
from lrem.retrievers import open_retriever
from lrem.vectors import means
from ray_apps.asking import ask as ask_model
from ray_apps.embed_items import build_index, embed
from ray_apps.rollout import ask as ask_pool
from ray_apps.rollout import start_pool, wait


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
        self.index, self.depth = load(index, fingerprint(Path(model))), depth

    def search(self, queries: list[str], reasonings: list[str | None]) -> list[list[tuple[str, float]]]:
        """The top `depth` items of each query."""
        return self._nearest(self.model.encode_queries(queries, reasonings))

    def search_mean(self, queries: list[str], reasonings: list[list[str]]) -> list[list[tuple[str, float]]]:
        """The same by the mean embedding of several reasonings of each query."""
        texts = [query for query, some in zip(queries, reasonings, strict=True) for _ in some]
        vectors = self.model.encode_queries(texts, [one for some in reasonings for one in some])
        return self._nearest(means(vectors, [len(some) for some in reasonings]))

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


def lexical(bm25: Bm25, asked: Asked, reasonings: list[str] | None = None, before_s: float = 0.0) -> Outcome:
    """BM25, of the queries alone or with keywords behind them, which took `before_s` to write."""
    texts = asked.texts if reasonings is None else list(map(expand, asked.texts, reasonings))
    found, seconds = timed(lambda: bm25.search(texts, asked.depth))
    return Outcome(asked.run(found), seconds + before_s, None if reasonings is None else share_of_thoughts(reasonings))


def sentence_transformer(config: Config, folder: str, asked: Asked) -> Outcome:
    """A folder of sentence-transformers."""
    place = config.run_dir / "systems" / Path(folder).name
    embed(config, Path(folder), place / "vectors")
    build_index(config, place / "vectors", place / "index")
    retriever = ray.remote(num_cpus=1)(_Retrieving).remote(folder, config.path("items"), str(place / "index"))
    try:
        _call(retriever.search.remote(asked.texts[:1], 1), config)  # the model is loaded: a server has it so
        found, seconds = timed(lambda: _call(retriever.search.remote(asked.texts, asked.depth), config))
    finally:
        ray.kill(retriever)
    return Outcome(asked.run(found), seconds)


class _Retrieving:
    def __init__(self, spec: str, items: Path, index: str) -> None:
        self.retriever = open_retriever(spec, items, index)

    def search(self, queries: list[str], k: int) -> list[list[tuple[str, float]]]:
        return self.retriever.search(queries, k)


def prompted(config: Config, bm25: Bm25, asked: Asked) -> Outcome:
    """Prompt-only expansion: a language model's keywords behind the query, into BM25."""
    llm = config.evaluate.llm
    questions = []
    for text in asked.texts:
        messages = rewrite_messages(text)
        questions.append(Question(question_key(llm.model or "", messages, llm.temperature, llm.max_tokens), messages))
    with Answers(config.run_dir / "evaluation" / "answers.sqlite") as answers:
        _, seconds = timed(lambda: ask_model(config, llm, questions, answers))
        said = answers.get([question.key for question in questions])
    return lexical(bm25, asked, [_keywords(said.get(question.key, "")) for question in questions], seconds)


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
    searcher = ray.remote(num_cpus=1)(Searcher).remote(str(folder), str(index), depth)
    _call(searcher.search.remote(["warm up"], [None]), config)
    return searcher


def search(config: Config, searcher: Any, asked: Asked, reasonings: list[Any], before_s: float = 0.0) -> Outcome:
    """One of our models, with a reasoning for each query, None for none, or several; they took `before_s` to write."""
    method = searcher.search_mean if isinstance(reasonings[0], list) else searcher.search
    found, seconds = timed(lambda: _call(method.remote(asked.texts, reasonings), config))
    return Outcome(asked.run(found), seconds + before_s, share_of_thoughts(reasonings))


def cut(config: Config, searcher: Any, reasonings: list[str], tokens: int) -> list[str]:
    """Reasonings shortened to so many tokens of the model."""
    return list(_call(searcher.cut.remote(reasonings, tokens), config))


class Thoughts(NamedTuple):
    """A model's reasonings of the queries, and the seconds that each kind took.

    own: greedy, as the model would; always: greedy, where it must not think nothing; sampled: several of each query.
    """

    own: list[str]
    always: list[str]
    sampled: list[list[str]]
    own_s: float
    always_s: float
    sampled_s: float


def think(config: Config, folder: Path, queries: list[str], samples: int) -> Thoughts:
    """Reasonings by the engines of a rollout pool; `samples` of each query at the rollouts' temperature."""
    pool = start_pool(folder, config)

    def reason(texts: list[str], temperature: float, seeds: list[int] | None, must_think: bool) -> list[str]:
        return list(ask_pool(pool, pool.reason.remote(texts, temperature, seeds, must_think), config, "the reasonings"))

    try:
        reason(queries[:1], 0.0, None, False)  # the engine is warm
        own, own_s = timed(lambda: reason(queries, 0.0, None, False))
        always, always_s = timed(lambda: reason(queries, 0.0, None, True))
        texts = [query for query in queries for _ in range(samples)]
        seeds = [config.seed + i for i in range(len(texts))]
        flat, sampled_s = timed(lambda: reason(texts, config.rollout.temperature, seeds, True) if texts else [])
    finally:
        ray.kill(pool)
    groups = [flat[i * samples : (i + 1) * samples] for i in range(len(queries))]
    return Thoughts(own, always, groups, own_s, always_s, sampled_s)


def share_of_thoughts(reasonings: list[Any]) -> float:
    """How many of them say something: what thinking costs."""
    said = [bool(text.strip()) if isinstance(text, str) else bool(text) for text in reasonings]
    return round(sum(said) / max(1, len(said)), 4)


def _call(reference: Any, config: Config) -> Any:
    [found] = wait([reference], config.rollout.timeout_s, "an index search")
    return found
