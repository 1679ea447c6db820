"""The work folder of a run, named by a hash of everything that its parts depend on.

The same command finds its parts again; another setting, model or input starts a new folder.
"""

import hashlib
import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lrem.config import Config
from lrem.curation.curation_run import CurationRun
from lrem.data.files import checksum
from lrem.retrieval.resolved_retriever import ResolvedRetriever, resolve_retriever
from ray_apps.curation.resumable import list_parts, part_counters

SPLIT_SETTINGS = ("rl_share", "dev_share", "test_share", "rl_easy")  # applied to finished parts
# how a language model is reached and what it costs: none of it changes an answer
ACCESS_SETTINGS = {
    *("url", "key_variable", "concurrency", "timeout_s", "retries", "actors", "batch_size", "tensor_parallel"),
    *("kv_cache_gib", "tokens_a_second", "price_in", "price_out"),
}


def open_run(config: Config) -> CurationRun:
    """Return the run of resolved settings: its work folder, which may not exist yet, and its retriever.

    Raises:
        DataError: the retriever names nothing, or a snapshot of another catalogue.
        SnapshotError: the snapshot cannot be read, or is of another model than paths.model.
    """
    retriever = resolve_retriever(config.curate.retriever, config.path("model"), config.path("items"))
    return CurationRun(config, _work_folder(config, retriever), retriever)


def remove_other_runs(run: CurationRun) -> None:
    """Delete the work folders of other settings or inputs; the answers of language models are kept."""
    for folder in run.folder.parent.glob("*"):
        is_run = re.fullmatch("[0-9a-f]{16}", folder.name) and (folder / "input").exists()
        if is_run and folder != run.folder:
            shutil.rmtree(folder)


def discard_failed_parts(run: CurationRun) -> None:
    """Delete the parts that lack answers of a language model, so that this run completes them."""
    for part in list_parts(run.folder / "taught"):
        if part_counters(part)["failed"]:
            (run.folder / "decided" / part.name).unlink(missing_ok=True)
            part.unlink()
    for part in list_parts(run.folder / "decided"):
        if part_counters(part)["unjudged"]:
            part.unlink()


def _work_folder(config: Config, retriever: ResolvedRetriever) -> Path:
    inputs = ["items", "queries", "qrels", *(["teacher"] if config.curate.teacher == "file" else [])]
    unused: Any = {
        "actors": True,
        "llm": ACCESS_SETTINGS,
        "judge_llm": ACCESS_SETTINGS,
        **dict.fromkeys(SPLIT_SETTINGS, True),
    }
    depends_on = {
        "version": version("lrem"),
        "settings": config.curate.model_dump(mode="json", exclude=unused),
        "budget": config.model.budget,
        "seed": config.seed,
        "source": config.model.source,
        "retriever": retriever.fingerprint,
        "cross_encoder": _cross_encoder_checksum(config),
        "inputs": {name: _checksum(config.path(name)) for name in inputs},
    }
    name = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:16]
    return config.path("triplets").parent / "work" / name


def _checksum(path: Path) -> str | None:
    """Return the checksum of a file or folder; None if there is none."""
    return checksum(path) if path.exists() else None


def _cross_encoder_checksum(config: Config) -> str | None:
    """Return that of the judge's folder: a model that was trained again judges again."""
    settings = config.curate
    return _checksum(Path(str(settings.cross_encoder))) if settings.judge == "cross_encoder" else None
