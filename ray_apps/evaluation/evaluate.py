"""Evaluation: every available system on the same test queries, the paper's probes, and the report.

It writes evaluation.json, evaluation.html, and every run and the judgements in TREC's formats under
run_dir/evaluation.
"""

from typing import Any

from lrem.config import Config
from lrem.data.schema import read_items
from lrem.errors import DataError
from lrem.evaluation.metrics import DEPTH, Run, measures
from lrem.evaluation.report import LABELS
from lrem.evaluation.trec import read_run
from lrem.modeling.model import fingerprint
from lrem.retrieval.resolved_retriever import check_index
from ray_apps.cluster.session import cluster
from ray_apps.evaluation.baselines import name_folders
from ray_apps.evaluation.evaluation_run import MODES, EvaluationRun
from ray_apps.evaluation.inputs import Queries, oracle_reasonings, test_set, trained_folders, with_difficulty
from ray_apps.evaluation.llm_judge import judge_precision
from ray_apps.evaluation.query_set import QuerySet
from ray_apps.evaluation.report_builder import build_report, write_report

RESERVED = {*LABELS, *MODES, *(f"lrem-{mode}" for mode in MODES)}  # names of our own systems, and of their files


def run(config: Config) -> dict[str, Any]:
    """Score every system whose model folder exists; writes the report and returns it.

    Raises:
        DataError: the inputs cannot be used, or a setting names an unknown measure.
    """
    test = test_set(config)
    names = measures(config.evaluate.k, config.evaluate.precision_k)
    if config.evaluate.primary not in names:
        raise DataError(f"evaluate.primary is '{config.evaluate.primary}': choose one of {', '.join(names)}")
    items = read_items(config.path("items"))
    others = name_folders(config.evaluate.sentence_transformers, {*RESERVED, *config.evaluate.runs})
    runs = external_runs(config, test.queries)
    models = {} if config.evaluate.url else trained_folders(config)
    if "lrem" in models:  # fail here, before an actor is started
        check_index(config.uri("index"), fingerprint(models["lrem"]), config.path("items"))
    test = test._replace(queries=with_difficulty(config, test.queries, test.qrels, items))
    depth = max(config.evaluate.k, config.evaluate.precision_k, DEPTH)
    queries = QuerySet(list(test.queries), [row["query"] for row in test.queries.values()], depth)
    with cluster(config):
        evaluation = EvaluationRun(config, queries, items, oracle_reasonings(config, test.queries))
        evaluation.add_external(runs)
        evaluation.add_baselines(others)
        if config.evaluate.url:
            evaluation.add_service(config.evaluate.url)
        for name, folder in models.items():
            evaluation.add_model(name, folder)
        evaluation.add_combinations()
        judge = judge_precision(config, queries, test.qrels, evaluation.systems, items)
    report = build_report(config, test, items, evaluation, judge)
    write_report(config, report, test.qrels, evaluation)
    return report


def external_runs(config: Config, queries: Queries) -> dict[str, Run]:
    """Read the runs of evaluate.runs: name → run.

    Raises:
        DataError: a name is reserved, or a file cannot be used or contains none of the test queries.
    """
    runs: dict[str, Run] = {}
    for name, file in config.evaluate.runs.items():
        if name in RESERVED:
            raise DataError(f"evaluate.runs: '{name}' is the name of one of our systems: choose another for {file}")
        runs[name] = read_run(file)
        if not runs[name].keys() & queries.keys():
            raise DataError(
                f"evaluate.runs: {file} contains none of the {len(queries)} test queries (e.g. "
                f"'{next(iter(queries))}'): check that its query ids are those of the judgements"
            )
    return runs
