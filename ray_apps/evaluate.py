"""Evaluation: every system at hand on the same test queries, the paper's probes, and the report.

Writes evaluation.json, evaluation.html, and every run and the judgements in TREC's formats under run_dir/evaluation.
"""

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from lrem.config import Config
from lrem.evaluation.assembly import Assembly, Outcome, labels
from lrem.evaluation.fusion import rrf
from lrem.evaluation.metrics import DEPTH, HARD, Qrels, Run, measures
from lrem.evaluation.overrides import OVERRIDES, override, vocabulary
from lrem.evaluation.page import write_page
from lrem.evaluation.report import NAMES
from lrem.evaluation.trec import write_qrels, write_run
from lrem.files import write_json
from lrem.index.snapshot import read_manifest
from lrem.model import fingerprint
from lrem.schema import QRELS, QUERIES, REASONINGS, DataError, read_items, read_table
from ray_apps import endpoint, systems
from ray_apps.cluster import cluster
from ray_apps.judged import judge_precision
from ray_apps.systems import Asked, Thoughts
from ray_apps.versions import versions

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
    found = {} if config.evaluate.url else trained(config)
    if "lrem" in found:
        read_manifest(config.uri("index"), fingerprint(found["lrem"]))  # rather now than in an actor
    depth = max(config.evaluate.k, config.evaluate.precision_k, DEPTH)
    asked = Asked(list(queries), [row["query"] for row in queries.values()], depth)
    with cluster(config):
        made = Made(config, asked, items)
        made.baselines()
        if config.evaluate.url:
            made.ask_endpoint(config.evaluate.url)
        for name, folder in found.items():
            made.embedding(name, folder, queries)
        made.fuse()
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
        self.thoughts: dict[str, str] = {}  # query_id → LREM's reasoning

    def baselines(self) -> None:
        """What needs no model of ours."""
        self.outcomes["bm25"] = systems.lexical(systems.open_bm25(self.items), self.asked)
        self.outcomes["bm25_stems"] = systems.lexical(self.bm25, self.asked)
        if self.config.evaluate.llm.model:
            self.outcomes["prompt"] = systems.prompted(self.config, self.bm25, self.asked)
        for folder in self.config.evaluate.sentence_transformers:
            self.outcomes[Path(folder).name] = systems.sentence_transformer(self.config, folder, self.asked)

    def embedding(self, name: str, folder: Path, queries: Queries) -> None:
        """One of our models; LREM with all of its probes."""
        config, asked = self.config, self.asked
        searcher = systems.start_searcher(config, name, folder, asked.depth)
        try:
            if name == "direct":
                self.outcomes[name] = systems.search(config, searcher, asked, [None] * len(asked.texts))
                return
            samples = max(config.evaluate.fusion, default=0) if name == "lrem" else 0
            thoughts = systems.think(config, folder, asked.texts, samples)
            self.outcomes[name] = systems.search(config, searcher, asked, thoughts.own, thoughts.own_s)
            if name == "lrem":
                self.thoughts = dict(zip(asked.ids, thoughts.own, strict=True))
                self.outcomes["rewrite"] = systems.lexical(self.bm25, asked, thoughts.own, thoughts.own_s)
                self._probe(searcher, thoughts, queries)
        finally:
            ray.kill(searcher)

    def _probe(self, searcher: Any, thoughts: Thoughts, queries: Queries) -> None:
        """The paper's override of the reasoning; when to think; how long; how often."""
        config, asked, own = self.config, self.asked, thoughts.own

        def find(reasonings: list[Any], before_s: float = 0.0) -> Outcome:
            return systems.search(config, searcher, asked, reasonings, before_s)

        words = vocabulary(self.items["title"].to_pylist())
        for kind in OVERRIDES:
            same = kind == "own"
            texts = override(kind, asked.texts, own, words, config.seed)
            self.overrides[kind] = self.outcomes["lrem"] if same else find(texts)
        gold = gold_reasonings(config, queries)
        if gold:
            self.overrides["gold"] = find([gold.get(q, thought) for q, thought in zip(asked.ids, own, strict=True)])
        always = find(thoughts.always, thoughts.always_s)
        self.routing = {"never": self.overrides["empty"], "auto": self.outcomes["lrem"], "always": always}
        for tokens in config.evaluate.lengths:
            self.lengths[str(tokens)] = find(systems.cut(config, searcher, thoughts.always, tokens))
        for count in config.evaluate.fusion:
            spent = thoughts.sampled_s * count / max(config.evaluate.fusion)
            self.fusion[str(count)] = find([some[:count] for some in thoughts.sampled], spent)

    def ask_endpoint(self, url: str) -> None:
        """A running service in each of its modes; `auto` is what the others are compared with."""
        for mode in MODES:
            self.routing[mode], said = endpoint.search_all(self.config, url, self.asked, mode)
            if mode == "auto":
                self.thoughts = said
        self.outcomes["lrem"] = self.routing["auto"]

    def fuse(self) -> None:
        """Reciprocal rank fusion of the better BM25 and LREM."""
        if "lrem" not in self.outcomes:
            return
        both = [self.outcomes[name] for name in ("bm25_stems", "lrem")]
        fused = rrf([outcome.run for outcome in both], self.asked.depth)
        self.outcomes["rrf"] = Outcome(fused, sum(outcome.seconds for outcome in both), both[1].thinks)


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
        "cost": {name: cost(outcome, size) for name, outcome in made.outcomes.items()},
    }
    for part in ("overrides", "lengths", "fusion"):
        found[part] = {name: table.score(f"{part} {name}", o.run) for name, o in getattr(made, part).items()}
    found["routing"] = {
        mode: cost(outcome, size) | {"scores": table.score(mode, outcome.run)} for mode, outcome in made.routing.items()
    }
    found["intervals"] = {name: table.intervals(name) for name in runs}
    pairs = [("lrem", name) for name in runs if name != "lrem"] if "lrem" in runs else []
    pairs += [("rrf", "bm25"), ("rrf", "bm25_stems")] if "rrf" in runs else []
    pairs += [("always", "never"), ("auto", "never")] if modes else []
    found["comparisons"] = table.compare(pairs)
    found["gallery"] = table.gallery("never", "auto", modes, made.thoughts, titles) if modes else []
    if judge:
        found["judge"] = judge
    found["counts"] = {"queries": size, "items": items.num_rows, "judgements": sum(map(len, qrels.values()))}
    found["settings"] = config.model_dump(mode="json")
    found["versions"] = versions()
    found["examples"] = examples(config, queries, qrels, runs, titles)
    _write(config, found, qrels, runs | {f"lrem-{mode}": run for mode, run in modes.items()})
    return found


def _write(config: Config, found: dict[str, Any], qrels: Qrels, runs: dict[str, Run]) -> None:
    folder = config.run_dir / "evaluation"
    write_qrels(qrels, folder / "qrels.txt")
    for name, run in runs.items():
        write_run(run, folder / f"{name}.run", name)
    write_json(found, config.run_dir / "evaluation.json")
    write_page(found, config.run_dir / "evaluation.html")


def cost(outcome: Outcome, queries: int) -> dict[str, float]:
    """Milliseconds of one query, all of them asked at once, and the share that was thought over."""
    spent = {"ms_per_query": round(1000 * outcome.seconds / queries, 2)}
    return spent if outcome.thinks is None else spent | {"thinks": outcome.thinks}


def commit() -> str | None:
    """The commit of the sources, if they lie in a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def test_set(config: Config) -> tuple[Queries, Qrels]:
    """The test queries that have judgements, by id, and their qrels."""
    table = read_table(config.path("queries"), QUERIES, keep_extra=True)
    qrels: dict[str, dict[str, int]] = {}
    for row in read_table(config.path("qrels"), QRELS).to_pylist():
        qrels.setdefault(row["query_id"], {})[row["item_id"]] = row["grade"]
    rows = {row["query_id"]: row for row in table.to_pylist() if row.get("split") in (None, "test")}
    queries = {query_id: row for query_id, row in rows.items() if query_id in qrels}
    if not queries:
        raise DataError(f"no test query of {config.path('queries')} has a judgement in {config.path('qrels')}")
    return queries, {query_id: qrels[query_id] for query_id in queries}


def trained(config: Config) -> dict[str, Path]:
    """The trained systems at hand, by name."""
    folders = {
        "direct": config.path("direct"),
        "cold_start": config.path("cold_start"),
        "lrem": config.path("model"),
    }
    return {name: folder for name, folder in folders.items() if folder.exists()}


def gold_reasonings(config: Config, queries: Queries) -> dict[str, str]:
    """Reasonings of test queries by someone who knows, if paths.gold is there."""
    if not config.path("gold").exists():
        return {}
    rows = read_table(config.path("gold"), REASONINGS).to_pylist()
    return {row["query_id"]: row["reasoning"] for row in rows if row["query_id"] in queries}


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
