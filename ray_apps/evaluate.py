"""Evaluation: BM25, direct embedding, cold start and LREM on the test queries, and the reasoning's overrides.

Each embedding system goes the way of production: vectors, index snapshot, vLLM reasoning, search.
"""

from pathlib import Path
from typing import Any

import numpy as np
import ray

from lrem.config import Config
from lrem.evaluation.metrics import HARD, Qrels, Run, per_query, summarise
from lrem.evaluation.overrides import OVERRIDES, override, vocabulary
from lrem.files import write_json
from lrem.index.snapshot import load, read_manifest
from lrem.lexical import Bm25
from lrem.model import ReasoningEmbedder, fingerprint
from lrem.schema import QRELS, QUERIES, DataError, read_items, read_table
from ray_apps.cluster import cluster
from ray_apps.embed_items import build_index, embed
from ray_apps.rollout import ask as ask_pool
from ray_apps.rollout import start_pool, wait

Queries = dict[str, dict[str, str]]  # query_id → its row


class Searcher:
    """An actor with one model and its index: queries and reasonings in, a run out."""

    def __init__(self, model: str, index: str, depth: int) -> None:
        self.model = ReasoningEmbedder.load(model).eval()
        self.index, self.depth = load(index, fingerprint(Path(model))), depth

    def search(self, query_ids: list[str], queries: list[str], reasonings: list[str | None]) -> Run:
        """The top `depth` items of each query."""
        vectors: np.ndarray = self.model.encode_queries(queries, reasonings)
        found = [[(hit.item_id, hit.score) for hit in hits] for hits in self.index.search(vectors, self.depth)]
        return dict(zip(query_ids, found, strict=True))


def run(config: Config) -> dict[str, Any]:
    """Score every system whose model folder exists; writes evaluation.json and returns it."""
    queries, qrels = test_set(config)
    items = read_items(config.path("items"))
    found = systems(config)
    if "lrem" in found:
        read_manifest(config.uri("index"), fingerprint(found["lrem"]))  # rather now than in an actor
    ids, texts = list(queries), [row["query"] for row in queries.values()]
    depth = max(config.evaluate.k, config.evaluate.precision_k)
    bm25 = Bm25(items["item_id"].to_pylist(), items["title"].to_pylist())
    runs: dict[str, Run] = {"bm25": dict(zip(ids, bm25.search(texts, depth), strict=True))}
    words = vocabulary(items["title"].to_pylist())
    overrides: dict[str, Run] = {}
    routing: dict[str, tuple[float, Run]] = {}  # mode → share of queries thought over, and what was found
    with cluster(config):
        for name, folder in found.items():
            searcher = start_searcher(config, name, folder, depth)
            thoughts: list[list[Any]] = [[None] * len(texts)] if name == "direct" else reason(config, folder, texts)
            own = thoughts[0]
            runs[name] = ask(config, searcher, ids, texts, own)
            for kind in OVERRIDES if name == "lrem" else ():
                overrides[kind] = ask(config, searcher, ids, texts, override(kind, texts, own, words, config.seed))
            if name == "lrem":
                always = ask(config, searcher, ids, texts, thoughts[1])
                routing = {
                    "never": (0.0, overrides["empty"]),
                    "auto": (share_of_thoughts(own), overrides["own"]),
                    "always": (share_of_thoughts(thoughts[1]), always),
                }
            ray.kill(searcher)
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    report = {
        "k": {"hit_rate": config.evaluate.k, "precision": config.evaluate.precision_k},
        "systems": {name: score(config, run, queries, qrels) for name, run in runs.items()},
        "overrides": {name: score(config, run, queries, qrels) for name, run in overrides.items()},
        "routing": {
            name: {"thinks": thinks, "scores": score(config, run, queries, qrels)}
            for name, (thinks, run) in routing.items()
        },
        "counts": {
            "queries": len(queries),
            "items": items.num_rows,
            "judgements": sum(map(len, qrels.values())),
        },
        "examples": examples(config, queries, qrels, runs, titles),
    }
    write_json(report, config.run_dir / "evaluation.json")
    return report


def test_set(config: Config) -> tuple[Queries, Qrels]:
    """The test queries that have judgements, by id, and their qrels."""
    table = read_table(config.path("queries"), QUERIES, keep_extra=True)
    qrels: dict[str, dict[str, int]] = {}
    for row in read_table(config.path("qrels"), QRELS).to_pylist():
        qrels.setdefault(row["query_id"], {})[row["item_id"]] = row["grade"]
    rows = {row["query_id"]: row for row in table.to_pylist() if row.get("split", "test") == "test"}
    queries = {query_id: row for query_id, row in rows.items() if query_id in qrels}
    if not queries:
        raise DataError(f"no test query of {config.path('queries')} has a judgement in {config.path('qrels')}")
    return queries, {query_id: qrels[query_id] for query_id in queries}


def systems(config: Config) -> dict[str, Path]:
    """The trained systems at hand, by name."""
    folders = {
        "direct": config.path("direct"),
        "cold_start": config.path("cold_start"),
        "lrem": config.path("model"),
    }
    return {name: folder for name, folder in folders.items() if folder.exists()}


def start_searcher(config: Config, name: str, folder: Path, depth: int) -> Any:
    """Start a Searcher; the baselines' catalogues are embedded and indexed first, LREM's index is the one served."""
    index: str | Path = config.uri("index")
    if name != "lrem":
        vectors, index = (config.run_dir / "systems" / name / part for part in ("vectors", "index"))
        embed(config, folder, vectors)
        build_index(config, vectors, index)
    return ray.remote(num_cpus=1)(Searcher).remote(str(folder), str(index), depth)


def reason(config: Config, folder: Path, queries: list[str]) -> list[list[str]]:
    """Greedy reasonings by the engines of a rollout pool: as the model would, and where it must not think nothing."""
    pool = start_pool(folder, config)
    try:
        return [
            list(ask_pool(pool, pool.reason.remote(queries, 0.0, None, must_think), config, "the reasonings"))
            for must_think in (False, True)
        ]
    finally:
        ray.kill(pool)


def share_of_thoughts(reasonings: list[str]) -> float:
    """How many of them say something: what thinking costs."""
    return round(sum(bool(text.strip()) for text in reasonings) / len(reasonings), 4)


def ask(config: Config, searcher: Any, ids: list[str], queries: list[str], reasonings: list[Any]) -> Run:
    """Search with a Searcher."""
    [found] = wait([searcher.search.remote(ids, queries, reasonings)], config.rollout.timeout_s, "an index search")
    return dict(found)


def score(config: Config, run: Run, queries: Queries, qrels: Qrels) -> dict[str, dict[str, float]]:
    """Metrics of a run by category."""
    categories = {query_id: row.get("category") or "uncategorised" for query_id, row in queries.items()}
    return summarise(per_query(run, qrels, config.evaluate.k, config.evaluate.precision_k), categories)


def examples(
    config: Config, queries: Queries, qrels: Qrels, runs: dict[str, Run], titles: dict[str, str]
) -> list[dict[str, Any]]:
    """The first test query of each hard category, not chosen by its result, with the direct system's top items."""
    first: dict[str, str] = {}
    for query_id, row in queries.items():
        first.setdefault(row.get("category", ""), query_id)
    chosen = [first[category] for category in HARD if category in first][: config.evaluate.examples]
    direct = runs.get("direct", {})
    return [
        {
            "query": queries[q]["query"],
            "category": queries[q]["category"],
            "relevant": [item for item, grade in qrels[q].items() if grade > 0],
            "direct": [{"item_id": item, "title": titles[item]} for item, _ in list(direct.get(q, ()))[:5]],
        }
        for q in chosen
    ]
