"""The stages by name: what each reads, writes and does. The command line and the demo both run them from here."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lrem.config import Config
from lrem.data.files import write_json
from ray_apps.cluster.progress import console

HERE = Path.cwd()  # asked now: Ray takes a job's working directory away when its driver leaves the cluster


class Stage(NamedTuple):
    """One stage: keys of `paths` that it reads and writes, and the function that does it."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    action: Callable[..., dict[str, Any]]


def _world(config: Config) -> dict[str, Any]:
    from lrem.world import make_world

    world = make_world(config.seed, **config.world.model_dump())
    world.write(config.path("items").parent)
    return {
        "items": world.items.num_rows,
        "queries": world.queries.num_rows,
        "judgements": world.qrels.num_rows,
    }


def _import(config: Config) -> dict[str, Any]:
    from lrem.curation.sources import import_tables
    from lrem.data.files import write_parquet

    found = import_tables(config.sources)
    tables = {"items": found.items, "queries": found.queries if found.queries.num_rows else None, "qrels": found.qrels}
    for name, table in tables.items():
        if table is not None:
            write_parquet(table, config.path(name))
        elif config.path(name) == config.default_path(name):  # an older import's would not fit
            config.path(name).unlink(missing_ok=True)
    return found.counts


def _bootstrap(config: Config) -> dict[str, Any]:
    from ray_apps.curation import bootstrap

    return bootstrap.run(config)


def _curate(config: Config) -> dict[str, Any]:
    from ray_apps.curation import curate

    return curate.run(config)


def _cold_start(config: Config, resume: bool = False) -> dict[str, Any]:
    from ray_apps.training import cold_start

    return cold_start.run(config, config.cold_start, config.path("cold_start"), resume)


def _direct(config: Config, resume: bool = False) -> dict[str, Any]:
    from ray_apps.training import cold_start

    return cold_start.run(config, config.direct, config.path("direct"), resume)


def _mine_negatives(config: Config) -> dict[str, Any]:
    from ray_apps.indexing import mine_negatives

    return mine_negatives.run(config)


def _reinforce(config: Config, resume: bool = False) -> dict[str, Any]:
    from ray_apps.training import reinforce

    return reinforce.run(config, resume)


def _embed(config: Config) -> dict[str, Any]:
    from ray_apps.indexing import embed

    return embed.embed(config, config.path("model"), config.path("vectors"))


def _index(config: Config) -> dict[str, Any]:
    from lrem.index.ann import choose
    from ray_apps.indexing import embed

    manifest = embed.build_index(config, config.path("vectors"), config.uri("index"))
    structure, reason = choose(manifest["count"], manifest["dimension"], config.index.factory)
    found = {"items": manifest["count"], "dimension": manifest["dimension"], "model": manifest["model"]}
    return found | {"structure": f"{structure} ({reason})"}


def _evaluate(config: Config) -> dict[str, Any]:
    from ray_apps.evaluation import evaluate

    return evaluate.run(config)


STAGES = {
    "world": Stage((), ("items", "queries", "qrels", "teacher"), _world),
    "import": Stage((), ("items", "queries", "qrels"), _import),
    "bootstrap": Stage(("items",), ("triplets", "rl_pairs"), _bootstrap),
    "curate": Stage(("items", "queries", "teacher", "qrels"), ("triplets", "rl_pairs"), _curate),
    "cold-start": Stage(("triplets", "items"), ("cold_start",), _cold_start),
    "direct": Stage(("triplets", "rl_pairs", "items"), ("direct",), _direct),
    "reinforce": Stage(("cold_start", "rl_pairs", "items"), ("model",), _reinforce),
    "embed": Stage(("items", "model"), ("vectors",), _embed),
    "index": Stage(("items", "vectors"), ("index",), _index),
    "mine-negatives": Stage(("triplets", "model", "index"), ("mined",), _mine_negatives),
    "evaluate": Stage(("queries", "qrels", "items", "model", "index"), (), _evaluate),
}


def run_stage(name: str, config: Config, **options: Any) -> dict[str, Any]:
    """Run one stage; say what it read, wrote and how long it took; keep that in run_dir/stages/NAME.json.

    Args:
        options: go to the stage, as `resume` of the training stages.
    """
    stage = STAGES[name]
    _say(f"{name} reads {_names(stage.reads, config) or 'nothing'}")
    started = time.monotonic()
    result = stage.action(config, **options)
    seconds = round(time.monotonic() - started, 1)
    counts = {key: value for key, value in result.items() if isinstance(value, int | float | str)}
    said = ", ".join(f"{key} {value}" for key, value in counts.items())
    wrote = _names(stage.writes, config) or _short(config.run_dir / "evaluation.json")
    _say(f"{name} wrote {wrote} in {seconds} s{f' ({said})' if said else ''}")
    write_json({"seconds": seconds, "counts": counts}, config.run_dir / "stages" / f"{name}.json")
    return result | {"seconds": seconds}


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, emoji=False)


def _names(keys: tuple[str, ...], config: Config) -> str:
    return ", ".join(_short(config.uri(key)) for key in keys)


def _short(path: str | Path) -> str:
    return str(path).removeprefix(f"{HERE}/")
