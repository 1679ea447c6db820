"""The systems that need no model of ours: BM25, expansion by a prompt, and sentence-transformers models."""

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import ray

from lrem.config import Config
from lrem.curation.answer_parsing import parse_keywords
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import chat_request
from lrem.curation.prompts import rewrite_messages
from lrem.curation.rules import expand_query
from lrem.errors import DataError
from lrem.evaluation.system_run import SystemRun, reasoned_share, timed
from lrem.retrieval.bm25 import Bm25
from lrem.retrieval.retriever_kind import retriever_kind
from ray_apps.cluster.progress import console
from ray_apps.evaluation.actors import RetrieverActor, call, call_in_batches, start_actor
from ray_apps.evaluation.query_set import QuerySet
from ray_apps.indexing.embed import build_index, embed
from ray_apps.llm.client import ask_model


def open_bm25(items: pa.Table, stems: bool = False) -> Bm25:
    """Build BM25 over the titles: over their words, or over stems without stop words."""
    return Bm25(items["item_id"].to_pylist(), items["title"].to_pylist(), stems)


def bm25_run(
    bm25: Bm25, queries: QuerySet, keywords: list[str] | None = None, keywords_s: float | None = 0.0
) -> SystemRun:
    """Search with BM25, by the queries alone or expanded by keywords.

    Args:
        keywords: to append to each query. keywords_s: seconds that writing them took, None if unknown.
    """
    texts = queries.texts if keywords is None else list(map(expand_query, queries.texts, keywords))
    rankings, seconds = timed(lambda: bm25.search(texts, queries.depth))
    reasoned = None if keywords is None else reasoned_share(keywords)
    return SystemRun(queries.run(rankings), None if keywords_s is None else seconds + keywords_s, reasoned)


def prompt_expansion_run(config: Config, bm25: Bm25, queries: QuerySet) -> SystemRun:
    """Search with BM25, the queries expanded by the keywords of evaluate.llm: expansion by a prompt alone.

    The run has no cost: the time would include the start of the engine, and answers are kept from run to run.

    Raises:
        DataError: no answer contains keywords.
    """
    llm = config.evaluate.llm
    requests = [chat_request(llm, rewrite_messages(text)) for text in queries.texts]
    with AnswerStore(answers_file(config)) as store:
        failures = ask_model(config, llm, requests, store)
        answers = store.get([request.key for request in requests])
    keywords = [_keywords(answers.get(request.key, "")) for request in requests]
    if not any(keywords):
        reason = next(iter(failures.values()), "no answer contains keywords")
        raise DataError(f"prompt expansion by {llm.model} failed for all {len(requests)} queries: {reason}")
    if missing := sum(not words for words in keywords):
        console.print(f"prompt expansion: {missing} of {len(keywords)} queries without keywords", highlight=False)
    return bm25_run(bm25, queries, keywords)._replace(seconds=None)


def answers_file(config: Config) -> Path:
    """Return the file that keeps the answers of evaluation's language models."""
    return config.run_dir / "answers" / "evaluation.sqlite"


def _keywords(answer: str) -> str:
    """Parse the keywords of an answer; an unreadable answer has none."""
    try:
        return parse_keywords(answer)
    except ValueError:
        return ""


def name_folders(folders: list[str], reserved: Collection[str]) -> dict[str, str]:
    """Return name → folder for the folders of evaluate.sentence_transformers; the name is the folder's last part.

    Raises:
        DataError: a folder holds no sentence-transformers model, or its name is reserved or appears twice.
    """
    named: dict[str, str] = {}
    for folder in folders:
        name = Path(folder).name
        if retriever_kind(folder) != "sentence-transformers":
            raise DataError(
                f"evaluate.sentence_transformers: {folder} is not a sentence-transformers model (it has no "
                "modules.json): name the folder that `save` wrote"
            )
        if not name.strip(".") or name in reserved or name in named:
            raise DataError(
                f"evaluate.sentence_transformers: {folder} has the name of another system: copy or link the folder "
                "under another name"
            )
        named[name] = folder
    return named


def sentence_transformer_run(config: Config, name: str, folder: str, queries: QuerySet) -> SystemRun:
    """Embed and index the catalogue with a sentence-transformers model, then search it."""
    parent = config.run_dir / "systems" / name
    embed(config, Path(folder), parent / "vectors")
    build_index(config, parent / "vectors", parent / "index")
    retriever = start_actor(RetrieverActor, folder, config.path("items"), str(parent / "index"), queries.depth)
    try:
        call(retriever.search, config, queries.texts[:1])  # load the model before the clock starts
        rankings, seconds = timed(lambda: call_in_batches(retriever.search, config, queries.texts))
    finally:
        ray.kill(retriever)
    return SystemRun(queries.run(rankings), seconds)
