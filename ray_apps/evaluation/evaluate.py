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
from lrem.data.files import atomic_folder, sha256, write_json
from lrem.data.schema import read_items
from lrem.errors import DataError
from lrem.evaluation.assembly import Assembly, Outcome, labels
from lrem.evaluation.fusion import rrf
from lrem.evaluation.metrics import DEPTH, HARD, Qrels, Run, measures
from lrem.evaluation.overrides import OVERRIDES, override, vocabulary
from lrem.evaluation.page import write_page
from lrem.evaluation.report import NAMES
from lrem.evaluation.trec import read_run, write_qrels, write_run
from lrem.modeling.model import fingerprint
from lrem.retrieval.retrievers import check_index
from ray_apps.cluster.progress import console
from ray_apps.cluster.session import cluster
from ray_apps.cluster.versions import commit, versions
from ray_apps.evaluation import http_system, systems
from ray_apps.evaluation.inputs import (
    Queries,
    TestSet,
    gold_reasonings,
    qrels_file,
    test_file,
    test_set,
    with_difficulty,
)
from ray_apps.evaluation.llm_judge import judge_precision
from ray_apps.evaluation.systems import Asked, Thoughts

MODES = ("never", "auto", "always")
TAKEN = {*NAMES, *MODES, *(f"lrem-{mode}" for mode in MODES)}  # names of systems of our own, and of their files


def run(config: Config) -> dict[str, Any]:
    """Score every system whose model folder exists; writes the report and returns it.

    Raises:
        DataError: the inputs cannot be used, or a setting names no measure.
    """
    test = test_set(config)
    known = measures(config.evaluate.k, config.evaluate.precision_k)
    if config.evaluate.primary not in known:
        raise DataError(f"evaluate.primary is '{config.evaluate.primary}': one of {', '.join(known)}")
    items = read_items(config.path("items"))
    others = systems.check_folders(config.evaluate.sentence_transformers, {*TAKEN, *config.evaluate.runs})
    runs = given_runs(config, test.queries)
    found = {} if config.evaluate.url else trained(config)
    if "lrem" in found:
        check_index(config.uri("index"), fingerprint(found["lrem"]), config.path("items"))  # rather than in an actor
    test = test._replace(queries=with_difficulty(config, test.queries, test.qrels, items))
    depth = max(config.evaluate.k, config.evaluate.precision_k, DEPTH)
    asked = Asked(list(test.queries), [row["query"] for row in test.queries.values()], depth)
    with cluster(config):
        made = Made(config, asked, items, gold_reasonings(config, test.queries))
        made.outcomes |= {name: Outcome(run) for name, run in runs.items()}
        made.baselines(others)
        if config.evaluate.url:
            made.ask_endpoint(config.evaluate.url)
        for name, folder in found.items():
            made.embedding(name, folder)
        made.combine()
        judge = judge_precision(config, asked, test.qrels, made.outcomes, items)
    return report(config, test, items, made, judge)


def given_runs(config: Config, queries: Queries) -> dict[str, Run]:
    """The runs of evaluate.runs, by name.

    Raises:
        DataError: a name is another system's, or a file cannot be used or has none of the test queries.
    """
    runs: dict[str, Run] = {}
    for name, file in config.evaluate.runs.items():
        if name in TAKEN:
            raise DataError(f"evaluate.runs: '{name}' is the name of a system of ours: give {file} another")
        runs[name] = read_run(file)
        if not runs[name].keys() & queries.keys():
            raise DataError(
                f"evaluate.runs: {file} has none of the {len(queries)} test queries (as '{next(iter(queries))}'): look "
                "whether its query ids are those of the judgements"
            )
    return runs


class Made:
    """The runs of one evaluation, by name, as they come to be."""

    def __init__(self, config: Config, asked: Asked, items: pa.Table, gold: dict[str, str]) -> None:
        self.config, self.asked, self.items, self.gold = config, asked, items, gold
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
        if self.gold:
            told = [self.gold.get(q, thought) for q, thought in zip(asked.ids, own, strict=True)]
            self.overrides["gold"] = find(told)
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
            self.routing[mode], said = http_system.search_all(self.config, url, self.asked, mode)
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


def report(config: Config, test: TestSet, items: pa.Table, made: Made, judge: dict[str, Any]) -> dict[str, Any]:
    """Score the runs; write and return the report."""
    queries, qrels = test.queries, test.qrels
    table = Assembly(queries, qrels, config.evaluate, config.seed)
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
    scores = {name: row["all"][config.evaluate.primary] for name, row in found["systems"].items()}
    found["comparisons"] = table.compare(compared(scores, bool(modes)))
    found["gallery"] = table.gallery("never", "always", modes, made.thoughts, titles) if modes else []
    if judge:
        found["judge"] = judge
    found["counts"] = {"queries": len(queries), "items": items.num_rows, "judgements": sum(map(len, qrels.values()))}
    found["counts"]["left out, trained on"] = test.left_out
    found["settings"] = public(config.model_dump(mode="json"))
    found["inputs"] = {
        "queries": str(test_file(config)),
        **{name: digest(file) for name, file in (("items", config.path("items")), ("qrels", qrels_file(config)))},
    }
    found["models"] = (
        {} if config.evaluate.url else {name: fingerprint(folder) for name, folder in trained(config).items()}
    )
    found["versions"] = versions()
    found["examples"] = examples(config, queries, qrels, runs, titles)
    _write(config, found, qrels, runs | {f"lrem-{mode}": run for mode, run in modes.items()})
    return found


def compared(scores: dict[str, float], modes: bool) -> list[tuple[str, str]]:
    """The pairs of systems to test: LREM with each, what it is made of, its modes, and the two best.

    Args:
        scores: of each system, over all queries. modes: whether LREM was asked in each of its modes.

    >>> compared({"bm25": 0.2, "ours": 0.4, "theirs": 0.3}, False)
    [('ours', 'theirs')]
    """
    pairs = [("lrem", name) for name in scores if name != "lrem"] if "lrem" in scores else []
    pairs += [("rrf", "bm25"), ("rrf", "bm25_stems")] if "rrf" in scores else []
    pairs += [("cold_start", "direct")] if {"cold_start", "direct"} <= set(scores) else []
    first, second = sorted(scores, key=lambda name: -scores[name])[:2]
    if not {(first, second), (second, first)} & set(pairs):
        pairs.append((first, second))
    return pairs + ([("always", "never"), ("auto", "never")] if modes else [])


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


def trained(config: Config) -> dict[str, Path]:
    """The trained systems at hand, by name."""
    folders = {
        "direct": config.path("direct"),
        "cold_start": config.path("cold_start"),
        "lrem": config.path("model"),
    }
    return {name: folder for name, folder in folders.items() if folder.exists()}


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
            "relevant": [item for item, grade in qrels[q].items() if grade >= config.evaluate.relevant_from],
            "direct": [{"item_id": item, "title": titles[item]} for item, _ in list(direct.get(q, ()))[:5]],
        }
        for q in chosen
    ]
