"""Evaluation: every system at hand on the same test queries, the paper's probes, and the report.

Writes evaluation.json, evaluation.html, and every run and the judgements in TREC's formats under run_dir/evaluation.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from lrem.config import Config, public
from lrem.evaluation.assembly import Assembly, Outcome, labels
from lrem.evaluation.fusion import rrf
from lrem.evaluation.metrics import DEPTH, HARD, Qrels, Run, measures
from lrem.evaluation.overrides import OVERRIDES, override, vocabulary
from lrem.evaluation.page import write_page
from lrem.evaluation.report import NAMES
from lrem.evaluation.trec import read_qrels, read_run, write_qrels, write_run
from lrem.files import atomic_folder, sha256, write_json
from lrem.index.snapshot import read_manifest
from lrem.model import fingerprint
from lrem.schema import QRELS, QUERIES, REASONINGS, DataError, read_items, read_table
from ray_apps import endpoint, systems
from ray_apps.cluster import cluster
from ray_apps.judged import judge_precision
from ray_apps.progress import console
from ray_apps.systems import Asked, Thoughts
from ray_apps.versions import commit, versions

Queries = dict[str, dict[str, Any]]  # query_id → its row
MODES = ("never", "auto", "always")


def run(config: Config) -> dict[str, Any]:
    """Score every system whose model folder exists; writes the report and returns it.

    Raises:
        DataError: the inputs cannot be used, or a setting names no measure.
    """
    queries, qrels = test_set(config)
    known = measures(config.evaluate.k, config.evaluate.precision_k)
    if config.evaluate.primary not in known:
        raise DataError(f"evaluate.primary is '{config.evaluate.primary}': one of {', '.join(known)}")
    items = read_items(config.path("items"))
    others = systems.check_folders(config.evaluate.sentence_transformers, {*NAMES, *MODES, *config.evaluate.runs})
    runs = {name: read_run(file) for name, file in config.evaluate.runs.items()}
    found = {} if config.evaluate.url else trained(config)
    if "lrem" in found:
        read_manifest(config.uri("index"), fingerprint(found["lrem"]))  # rather now than in an actor
    depth = max(config.evaluate.k, config.evaluate.precision_k, DEPTH)
    asked = Asked(list(queries), [row["query"] for row in queries.values()], depth)
    with cluster(config):
        made = Made(config, asked, items)
        made.outcomes |= {name: Outcome(run) for name, run in runs.items()}
        made.baselines(others)
        if config.evaluate.url:
            made.ask_endpoint(config.evaluate.url)
        for name, folder in found.items():
            made.embedding(name, folder)
        made.combine()
        judge = judge_precision(config, asked, qrels, made.outcomes, items)
    return report(config, queries, qrels, items, made, judge)


class Made:
    """The runs of one evaluation, by name, as they come to be."""

    def __init__(self, config: Config, asked: Asked, items: pa.Table) -> None:
        self.config, self.asked, self.items = config, asked, items
        self.bm25 = systems.open_bm25(items, stems=True)
        self.outcomes: dict[str, Outcome] = {}  # the systems that are compared
        self.overrides: dict[str, Outcome] = {}
        self.routing: dict[str, Outcome] = {}
        self.lengths: dict[str, Outcome] = {}
        self.fusion: dict[str, Outcome] = {}
        self.thoughts: dict[str, str] = {}  # query_id → LREM's reasoning, always thinking
        self.thought_s: float | None = None  # what these took, where that is known

    def baselines(self, others: dict[str, str]) -> None:
        """What needs no model of ours."""
        self.outcomes["bm25"] = systems.lexical(systems.open_bm25(self.items), self.asked)
        self.outcomes["bm25_stems"] = systems.lexical(self.bm25, self.asked)
        if self.config.evaluate.llm.model:
            self.outcomes["prompt"] = systems.prompted(self.config, self.bm25, self.asked)
        for name, folder in others.items():
            self.outcomes[name] = systems.sentence_transformer(self.config, name, folder, self.asked)

    def embedding(self, name: str, folder: Path) -> None:
        """One of our models; LREM with all of its probes."""
        config, asked = self.config, self.asked
        searcher = systems.start_searcher(config, name, folder, asked.depth)
        try:
            if name == "direct":
                self.outcomes[name] = systems.search(config, searcher, asked, [None] * len(asked.texts))
                return
            samples = max(config.evaluate.fusion, default=0) if name == "lrem" else 0
            thoughts = systems.think(config, folder, searcher, asked.texts, samples)
            self.outcomes[name] = systems.search(config, searcher, asked, thoughts.auto, thoughts.auto_s)
            if name == "lrem":
                self.thoughts = dict(zip(asked.ids, thoughts.always, strict=True))
                self.thought_s = thoughts.always_s
                self._probe(searcher, thoughts)
        finally:
            ray.kill(searcher)

    def _probe(self, searcher: Any, thoughts: Thoughts) -> None:
        """When to think; the paper's override of the reasoning, always thinking; how long; how often."""
        config, asked, own = self.config, self.asked, thoughts.always

        def find(reasonings: list[Any], before_s: float = 0.0) -> Outcome:
            return systems.search(config, searcher, asked, reasonings, before_s)

        words = vocabulary(self.items["title"].to_pylist())
        self.overrides = {
            kind: find(
                override(kind, asked.texts, own, words, config.seed), thoughts.always_s if kind == "own" else 0.0
            )
            for kind in OVERRIDES
        }
        gold = gold_reasonings(config, asked.ids)
        if gold:
            self.overrides["gold"] = find([gold.get(q, thought) for q, thought in zip(asked.ids, own, strict=True)])
        self.routing = {
            "never": self.overrides["empty"],
            "auto": self.outcomes["lrem"],
            "always": self.overrides["own"],
        }
        for tokens in config.evaluate.lengths:
            self.lengths[str(tokens)] = find(systems.cut(config, searcher, own, tokens))
        for count in config.evaluate.fusion:
            self.fusion[str(count)] = find([some[:count] for some in thoughts.sampled])

    def ask_endpoint(self, url: str) -> None:
        """A running service in each of its modes; `auto` is what the others are compared with."""
        for mode in MODES:
            self.routing[mode], said = endpoint.search_all(self.config, url, self.asked, mode)
            self.thoughts = said  # in the end those of `always`
        self.outcomes["lrem"] = self.routing["auto"]

    def combine(self) -> None:
        """LREM with BM25: its reasoning as a rewritten query, and reciprocal rank fusion with the better BM25."""
        if "lrem" not in self.outcomes:
            return
        said = [self.thoughts[query_id] for query_id in self.asked.ids]
        self.outcomes["rewrite"] = systems.lexical(self.bm25, self.asked, said, self.thought_s)
        both = [self.outcomes[name] for name in ("bm25_stems", "lrem")]
        fused = rrf([outcome.run for outcome in both], self.asked.depth)
        self.outcomes["rrf"] = Outcome(fused, sum(outcome.seconds or 0 for outcome in both), both[1].thinks)


def report(
    config: Config, queries: Queries, qrels: Qrels, items: pa.Table, made: Made, judge: dict[str, Any]
) -> dict[str, Any]:
    """Score the runs; write and return the report."""
    table, size = Assembly(queries, qrels, config.evaluate, config.seed), len(queries)
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    runs = {name: outcome.run for name, outcome in made.outcomes.items()}
    modes = {mode: outcome.run for mode, outcome in made.routing.items()}
    found: dict[str, Any] = {
        "title": f"Evaluation of {config.run_dir.name}",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": config.seed,
        "k": {"hit_rate": config.evaluate.k, "precision": config.evaluate.precision_k},
        "measures": labels(config.evaluate.k, config.evaluate.precision_k),
        "primary": config.evaluate.primary,
        "names": {name: NAMES.get(name, name) for name in runs},
        "systems": {name: table.score(name, run) for name, run in runs.items()},
        "slices": {name: len(ids) for name, ids in table.slices.items()},
        "unjudged": {name: table.unjudged(run) for name, run in runs.items()},
        "cost": {name: outcome.cost() for name, outcome in made.outcomes.items()},
    }
    for part in ("overrides", "lengths", "fusion"):
        found[part] = {name: table.score(f"{part} {name}", o.run) for name, o in getattr(made, part).items()}
    found["routing"] = {
        mode: outcome.cost() | {"scores": table.score(mode, outcome.run)} for mode, outcome in made.routing.items()
    }
    found["intervals"] = {name: table.intervals(name) for name in runs}
    pairs = [("lrem", name) for name in runs if name != "lrem"] if "lrem" in runs else []
    pairs += [("rrf", "bm25"), ("rrf", "bm25_stems")] if "rrf" in runs else []
    pairs += [("cold_start", "direct")] if {"cold_start", "direct"} <= set(runs) else []
    pairs += [("always", "never"), ("auto", "never")] if modes else []
    found["comparisons"] = table.compare(pairs)
    found["gallery"] = table.gallery("never", "always", modes, made.thoughts, titles) if modes else []
    if judge:
        found["judge"] = judge
    found["counts"] = {"queries": size, "items": items.num_rows, "judgements": sum(map(len, qrels.values()))}
    found["settings"] = public(config.model_dump(mode="json"))
    found["inputs"] = {
        "queries": str(test_file(config)),
        **{name: digest(config.path(name)) for name in ("items", "qrels")},
    }
    found["models"] = (
        {} if config.evaluate.url else {name: fingerprint(folder) for name, folder in trained(config).items()}
    )
    found["versions"] = versions()
    found["examples"] = examples(config, queries, qrels, runs, titles)
    _write(config, found, qrels, runs | {f"lrem-{mode}": run for mode, run in modes.items()})
    return found


def _write(config: Config, found: dict[str, Any], qrels: Qrels, runs: dict[str, Run]) -> None:
    """The report first: an id that TREC's formats cannot hold must not cost it."""
    write_json(found, config.run_dir / "evaluation.json")
    write_page(found, config.run_dir / "evaluation.html")
    try:
        with atomic_folder(config.run_dir / "evaluation") as part:
            write_qrels(qrels, part / "qrels.txt")
            for name, run in runs.items():
                tag = re.sub(r"[^\w.-]+", "_", name)
                write_run(run, part / f"{tag}.run", tag)
    except DataError as error:
        console.print(f"no TREC files: {error}", highlight=False, markup=False)


def digest(path: Path) -> str:
    """A file by its name and the start of its checksum; a folder by its name."""
    return f"{path} ({sha256(path)[:12]})" if path.is_file() else str(path)


def test_file(config: Config) -> Path:
    """The queries to ask: those that curation kept for the test, or paths.queries."""
    return config.path("test") if config.path("test").exists() else config.path("queries")


def test_set(config: Config) -> tuple[Queries, Qrels]:
    """The test queries that have judgements, by id, and their qrels, which may be in TREC's format.

    Raises:
        DataError: a file cannot be used, or no test query is judged.
    """
    file, judged = test_file(config), config.path("qrels")
    table = read_table(file, QUERIES, keep_extra=True)
    qrels: dict[str, dict[str, int]] = {}
    if judged.suffix in (".txt", ".qrels", ".tsv"):
        qrels = read_qrels(judged)
    else:
        for row in read_table(judged, QRELS).to_pylist():
            qrels.setdefault(row["query_id"], {})[row["item_id"]] = row["grade"]
    rows = {row["query_id"]: row for row in table.to_pylist() if row.get("split", "test") == "test"}
    queries = {query_id: row for query_id, row in rows.items() if query_id in qrels}
    if not queries:
        raise DataError(f"no test query of {file} has a judgement in {judged}")
    return queries, {query_id: qrels[query_id] for query_id in queries}


def trained(config: Config) -> dict[str, Path]:
    """The trained systems at hand, by name."""
    folders = {
        "direct": config.path("direct"),
        "cold_start": config.path("cold_start"),
        "lrem": config.path("model"),
    }
    return {name: folder for name, folder in folders.items() if folder.exists()}


def gold_reasonings(config: Config, ids: list[str]) -> dict[str, str]:
    """Reasonings of test queries by someone who knows, if paths.gold is there.

    Raises:
        DataError: the file that is named cannot be used.
    """
    if not config.path("gold").exists() and config.path("gold") == config.default_path("gold"):
        return {}
    rows, asked = read_table(config.path("gold"), REASONINGS).to_pylist(), set(ids)
    return {row["query_id"]: row["reasoning"] for row in rows if row["query_id"] in asked}


def examples(
    config: Config, queries: Queries, qrels: Qrels, runs: dict[str, Run], titles: dict[str, str]
) -> list[dict[str, Any]]:
    """The first test query of each hard category, not chosen by its result, with the direct system's top items."""
    first: dict[str, str] = {}
    for query_id, row in queries.items():
        first.setdefault(row.get("category") or "", query_id)
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
