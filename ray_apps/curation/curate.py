"""Curation on Ray Data: from a catalogue and queries to triplets, RL pairs and a datasheet.

    cut    the queries, into parts
    find   what the retriever returns for each query, and whether the query is hard
    teach  a reasoning for each hard query, keywords that pass the rules, and the items that only they reach
    judge  which of these items are relevant to the query
    write  triplets.parquet, rl_pairs.parquet, dev.parquet and test.parquet by the split, datasheet.json and .md

Easy queries get an empty reasoning. Hard queries with judgements but without a reasoning go to reinforcement. A killed
run resumes after its last finished part; the answers of language models are saved for good.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lrem.config import Config
from lrem.curation.curation_run import CurationRun
from lrem.curation.finder import Finder
from lrem.curation.judge import Judge
from lrem.curation.teacher import Teacher
from lrem.data.files import exclusive_lock
from ray_apps.cluster.session import cluster
from ray_apps.curation.inputs import cut_queries
from ray_apps.curation.llm_requests import DeadLetter, ask_judge, ask_teacher, write_dead_letters
from ray_apps.curation.outputs import write_outputs
from ray_apps.curation.preflight import check_settings, resolve_settings
from ray_apps.curation.resumable import PartStep, run_step
from ray_apps.curation.run_folder import discard_failed_parts, open_run, remove_other_runs
from ray_apps.indexing.embed import build_index, embed

LOCK_TIMEOUT_S = 10.0  # far less than another curation in the same folder would take


def run(config: Config) -> dict[str, Any]:
    """Write the training files and the datasheet; return the counters.

    Raises:
        DataError: an input cannot be used, a setting lacks its model, or nothing is left to train on.
    """
    config = resolve_settings(config)
    check_settings(config)
    curation = open_run(config)
    curation.folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(curation.folder.parent / "lock", LOCK_TIMEOUT_S), cluster(config):
        remove_other_runs(curation)
        curation = _index_catalogue(curation)
        cut_queries(curation)
        discard_failed_parts(curation)
        _find(curation)
        dead_letters = _teach(curation) + _judge(curation)
    write_dead_letters(dead_letters, config.path("triplets").with_name("dead_letters.jsonl"))
    return write_outputs(curation)


def _index_catalogue(run: CurationRun) -> CurationRun:
    """Build the index of a retriever that is a model folder, unless an earlier start of this run has built it."""
    if run.retriever.model is None or run.retriever.index is not None:
        return run
    vectors, index = run.folder / "retriever" / "vectors", run.folder / "retriever" / "index"
    if not (index / "manifest.json").exists():
        embed(run.config, Path(run.retriever.model), vectors)
        build_index(run.config, vectors, index)
    return run._replace(retriever=replace(run.retriever, index=str(index)))


def _find(run: CurationRun) -> None:
    source, target = run.folder / "input", run.folder / "found"
    run_step(run.config, PartStep("find", Finder, (run,), source, target, use_gpu=run.retriever.model is not None))


def _teach(run: CurationRun) -> list[DeadLetter]:
    asks_model = run.config.curate.teacher == "llm"
    dead_letters = ask_teacher(run) if asks_model else []
    source, target = run.folder / "found", run.folder / "taught"
    use_gpu = run.retriever.model is not None
    # on the driver's machine if the workers read the answers, which are on its disk
    run_step(run.config, PartStep("teach", Teacher, (run,), source, target, use_gpu, on_driver=asks_model))
    return dead_letters


def _judge(run: CurationRun) -> list[DeadLetter]:
    judge = run.config.curate.judge
    dead_letters = ask_judge(run) if judge == "llm" else []
    source, target = run.folder / "taught", run.folder / "decided"
    use_gpu, on_driver = judge == "cross_encoder", judge == "llm"
    run_step(run.config, PartStep("judge", Judge, (run,), source, target, use_gpu, on_driver))
    return dead_letters
