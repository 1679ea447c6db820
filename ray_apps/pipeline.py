"""The registry of stages: what each reads and writes, and the function that runs it, imported when it runs.

The command line and the demo run every stage through `run_stage`.
"""

import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

from lrem.config import Config
from lrem.data.files import write_json
from ray_apps.cluster.progress import console

WORKING_DIR = Path.cwd()  # read now: Ray deletes a job's working directory when its driver disconnects


class Stage(NamedTuple):
    """One stage.

    Attributes:
        reads: keys of `paths` that it needs. writes: keys of `paths` that it makes.
        function: "module:function", not imported before it runs, so that `lrem --help` stays fast.
        arguments: what the function takes of a configuration.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    function: str
    arguments: Callable[[Config], tuple[Any, ...]] = lambda config: (config,)


STAGES = {
    "world": Stage(
        reads=(),
        writes=("items", "queries", "qrels", "teacher"),
        function="ray_apps.local_stages:generate_world",
    ),
    "import": Stage(
        reads=(),
        writes=("items", "queries", "qrels"),
        function="ray_apps.local_stages:import_sources",
    ),
    "bootstrap": Stage(
        reads=("items",),
        writes=("triplets", "rl_pairs"),
        function="ray_apps.curation.bootstrap:run",
    ),
    "curate": Stage(
        reads=("items", "queries", "teacher", "qrels"),
        writes=("triplets", "rl_pairs"),
        function="ray_apps.curation.curate:run",
    ),
    "cold-start": Stage(
        reads=("triplets", "items"),
        writes=("cold_start",),
        function="ray_apps.training.cold_start:run",
        arguments=lambda config: (config, config.cold_start, config.path("cold_start")),
    ),
    "direct": Stage(
        reads=("triplets", "rl_pairs", "items"),
        writes=("direct",),
        function="ray_apps.training.cold_start:run",
        arguments=lambda config: (config, config.direct, config.path("direct")),
    ),
    "reinforce": Stage(
        reads=("cold_start", "rl_pairs", "items"),
        writes=("model",),
        function="ray_apps.training.reinforce:run",
    ),
    "embed": Stage(
        reads=("items", "model"),
        writes=("vectors",),
        function="ray_apps.indexing.embed:embed",
        arguments=lambda config: (config, config.path("model"), config.path("vectors")),
    ),
    "index": Stage(
        reads=("items", "vectors"),
        writes=("index",),
        function="ray_apps.local_stages:build_index",
    ),
    "mine-negatives": Stage(
        reads=("triplets", "model", "index"),
        writes=("mined",),
        function="ray_apps.indexing.mine_negatives:run",
    ),
    "evaluate": Stage(
        reads=("queries", "qrels", "items", "model", "index"),
        writes=(),
        function="ray_apps.evaluation.evaluate:run",
    ),
}


def run_stage(name: str, config: Config, **options: Any) -> dict[str, Any]:
    """Run one stage, print what it read and wrote and its time, and save that as run_dir/stages/NAME.json.

    Args:
        options: passed on to the stage, as `resume` of the training stages.
    """
    stage = STAGES[name]
    sources = [config.sources.folder, config.sources.catalogue, config.sources.queries, config.sources.judgements]
    inputs = ", ".join(filter(None, sources)) if name == "import" else _paths(stage.reads, config)
    _print(f"{name} reads {inputs or 'nothing'}")
    started = time.monotonic()
    result: dict[str, Any] = resolve_name(stage.function)(*stage.arguments(config), **options)
    seconds = round(time.monotonic() - started, 1)
    counts = {key: value for key, value in result.items() if isinstance(value, int | float | str)}
    summary = ", ".join(f"{key} {value}" for key, value in counts.items())
    written = tuple(key for key in stage.writes if "://" in config.uri(key) or config.path(key).exists())
    outputs = _paths(written, config) or _relative(config.run_dir / "evaluation.json")
    _print(f"{name} wrote {outputs} in {seconds} s{f' ({summary})' if summary else ''}")
    write_json({"seconds": seconds, "counts": counts}, config.run_dir / "stages" / f"{name}.json")
    return result | {"seconds": seconds}


def _print(text: str) -> None:
    console.print(text, highlight=False, markup=False, emoji=False)


def _paths(keys: tuple[str, ...], config: Config) -> str:
    return ", ".join(_relative(config.uri(key)) for key in keys)


def _relative(path: str | Path) -> str:
    return str(path).removeprefix(f"{WORKING_DIR}/")
