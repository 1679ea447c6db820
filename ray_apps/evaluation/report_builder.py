"""The report of an evaluation, from its runs, and the files it is written to."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from lrem.config import Config, public
from lrem.data.files import atomic_folder, sha256, write_json
from lrem.errors import DataError
from lrem.evaluation.metrics import HARD, Qrels, Run
from lrem.evaluation.page import write_page
from lrem.evaluation.report import LABELS
from lrem.evaluation.run_scorer import RunScorer, measure_labels
from lrem.evaluation.trec import write_qrels, write_run
from lrem.modeling.model import fingerprint
from lrem.modeling.thinking import best_think_below
from ray_apps.cluster.progress import console
from ray_apps.cluster.versions import commit, versions
from ray_apps.evaluation.evaluation_run import EvaluationRun
from ray_apps.evaluation.inputs import TestSet, qrels_file, test_file, trained_folders


def build_report(
    config: Config, test: TestSet, items: pa.Table, evaluation: EvaluationRun, judge: dict[str, Any]
) -> dict[str, Any]:
    """Score the runs and return the report.

    Args:
        judge: the section of `judge_precision`, empty without a judge.
    """
    scorer = RunScorer(test.queries, test.qrels, config.evaluate, config.seed)
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    report = _header(config, list(evaluation.systems)) | _scores(scorer, evaluation)
    report |= _significance(config, scorer, report, evaluation, titles)
    if judge:
        report["judge"] = judge
    report["counts"] = {
        "queries": len(test.queries),
        "items": items.num_rows,
        "judgements": sum(map(len, test.qrels.values())),
        "left out, trained on": test.left_out,
    }
    direct = evaluation.systems.get("direct")
    return report | _provenance(config) | {"examples": examples(config, test, direct.run if direct else {}, titles)}


def _header(config: Config, systems: list[str]) -> dict[str, Any]:
    return {
        "title": f"Evaluation of {config.run_dir.name}",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "seed": config.seed,
        "k": {"hit_rate": config.evaluate.k, "precision": config.evaluate.precision_k},
        "measures": measure_labels(config.evaluate.k, config.evaluate.precision_k),
        "primary": config.evaluate.primary,
        "names": {name: LABELS.get(name, name) for name in systems},
    }


def _scores(scorer: RunScorer, evaluation: EvaluationRun) -> dict[str, Any]:
    """Score the systems and the probes, by slice, with the cost of the systems."""
    systems = evaluation.systems
    scores: dict[str, Any] = {
        "systems": {name: scorer.score(name, system.run) for name, system in systems.items()},
        "slices": {name: len(ids) for name, ids in scorer.slices.items()},
        "unjudged": {name: scorer.unjudged(system.run) for name, system in systems.items()},
        "cost": {name: system.cost() for name, system in systems.items()},
    }
    probes = {"overrides": evaluation.overrides, "lengths": evaluation.lengths, "fusion": evaluation.fusion}
    for probe, variants in probes.items():
        scores[probe] = {name: scorer.score(f"{probe} {name}", variant.run) for name, variant in variants.items()}
    scores["routing"] = {
        mode: variant.cost() | {"scores": scorer.score(mode, variant.run)}
        for mode, variant in evaluation.routing.items()
    }
    if probabilities := evaluation.empty_probabilities:
        best = best_think_below([*probabilities.values()], scorer.differences("always", "never", probabilities))
        scores["think_below"] = {"set": evaluation.config.serve.think_below, "best": best}
    return scores


def _significance(
    config: Config, scorer: RunScorer, report: dict[str, Any], evaluation: EvaluationRun, titles: dict[str, str]
) -> dict[str, Any]:
    """Return the intervals and comparisons of the scored systems, and the gallery."""
    modes = {mode: variant.run for mode, variant in evaluation.routing.items()}
    primary = {name: row["all"][config.evaluate.primary] for name, row in report["systems"].items()}
    return {
        "intervals": {name: scorer.intervals(name) for name in evaluation.systems},
        "comparisons": scorer.compare(comparison_pairs(primary, bool(modes))),
        "gallery": scorer.gallery("never", "always", modes, evaluation.reasonings, titles) if modes else [],
    }


def comparison_pairs(scores: dict[str, float], modes: bool) -> list[tuple[str, str]]:
    """Return the pairs of systems to test: LREM with each other one, its ingredients, its modes, and the two best.

    Args:
        scores: the scores of each system over all queries. modes: whether LREM was run in each of its modes.

    >>> comparison_pairs({"bm25": 0.2, "ours": 0.4, "theirs": 0.3}, False)
    [('ours', 'theirs')]
    """
    pairs = [("lrem", name) for name in scores if name != "lrem"] if "lrem" in scores else []
    pairs += [("rrf", "bm25"), ("rrf", "bm25_stems")] if "rrf" in scores else []
    pairs += [("cold_start", "direct")] if {"cold_start", "direct"} <= set(scores) else []
    first, second = sorted(scores, key=lambda name: -scores[name])[:2]
    if not {(first, second), (second, first)} & set(pairs):
        pairs.append((first, second))
    return pairs + ([("always", "never"), ("auto", "never")] if modes else [])


def examples(config: Config, test: TestSet, direct: Run, titles: dict[str, str]) -> list[dict[str, Any]]:
    """Return the first test query of each hard category, whatever its result, with the top items of `direct`."""
    first: dict[str, str] = {}
    for query_id, row in test.queries.items():
        first.setdefault(row.get("category") or "", query_id)
    chosen = [first[category] for category in HARD if category in first][: config.evaluate.examples]
    relevant_from = config.evaluate.relevant_from
    return [
        {
            "query": test.queries[q]["query"],
            "category": test.queries[q]["category"],
            "relevant": [item for item, grade in test.qrels[q].items() if grade >= relevant_from],
            "direct": [{"item_id": item, "title": titles[item]} for item, _ in list(direct.get(q, ()))[:5]],
        }
        for q in chosen
    ]


def _provenance(config: Config) -> dict[str, Any]:
    """Return settings, inputs, models and versions."""
    inputs = {"items": config.path("items"), "qrels": qrels_file(config)}
    models = {} if config.evaluate.url else trained_folders(config)
    return {
        "settings": public(config.model_dump(mode="json")),
        "inputs": {"queries": str(test_file(config)), **{name: describe_file(path) for name, path in inputs.items()}},
        "models": {name: fingerprint(folder) for name, folder in models.items()},
        "versions": versions(),
    }


def describe_file(path: Path) -> str:
    """Return a file's path with the start of its checksum; a folder's path alone."""
    return f"{path} ({sha256(path)[:12]})" if path.is_file() else str(path)


def write_report(config: Config, report: dict[str, Any], qrels: Qrels, evaluation: EvaluationRun) -> None:
    """Write the report as JSON and HTML, and the runs and judgements in TREC's formats.

    The report comes first: an id that TREC's formats cannot hold must not cost it.
    """
    write_json(report, config.run_dir / "evaluation.json")
    write_page(report, config.run_dir / "evaluation.html")
    runs = {name: system.run for name, system in evaluation.systems.items()}
    runs |= {f"lrem-{mode}": variant.run for mode, variant in evaluation.routing.items()}
    try:
        with atomic_folder(config.run_dir / "evaluation") as part:
            write_qrels(qrels, part / "qrels.txt")
            for name, run in runs.items():
                tag = re.sub(r"[^\w.-]+", "_", name)
                write_run(run, part / f"{tag}.run", tag)
    except DataError as error:
        console.print(f"the TREC files were not written: {error}", highlight=False, markup=False)
