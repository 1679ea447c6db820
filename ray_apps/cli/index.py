"""`lrem index …`: build, look at, measure, save and restore an index."""

from typing import Annotated

import typer

from lrem.config import load_config
from ray_apps.cli.options import Catalogue, ConfigFile, DryRun, Overrides, Source, Where, load
from ray_apps.cluster.progress import console
from ray_apps.pipeline import run_stage

app = typer.Typer(no_args_is_help=True, help="Build, look at, measure, save and restore an index.")


@app.command("build")
def index_build(
    config: ConfigFile = None,
    overrides: Overrides = None,
    catalogue: Catalogue = None,
    dry_run: DryRun = False,
) -> None:
    """Build the index snapshot (paths.index) from vectors and catalogue."""
    run_stage("index", load(config, overrides, dry_run, items=catalogue))


@app.command("stats")
def index_stats(config: ConfigFile = None, overrides: Overrides = None, source: Source = None) -> None:
    """What an index holds; a snapshot's files are compared with their checksums."""
    from ray_apps.indexing.maintenance import show as print_stats
    from ray_apps.indexing.maintenance import stats

    settings = load_config(config, overrides or [])
    print_stats(stats(source or settings.uri("index"), settings.index.factory))


@app.command("recall")
def index_recall(
    config: ConfigFile = None,
    overrides: Overrides = None,
    source: Source = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many items count.")] = 10,
    queries: Annotated[int, typer.Option(min=1, help="How many queries to ask.")] = 200,
    where: Where = None,
) -> None:
    """Compare a snapshot's search with exact search: recall@k against milliseconds, at several efforts."""
    from ray_apps.indexing.maintenance import recall
    from ray_apps.serving.client import parse_filter

    settings = load_config(config, overrides or [])
    origin, table = recall(settings, source or settings.uri("index"), k, queries, parse_filter(where))
    console.print(table)
    console.print(f"queries: {origin}", markup=False, highlight=False)


@app.command("snapshot")
def index_snapshot(
    destination: Annotated[str, typer.Argument(help="A new folder, or an address as s3://bucket/name.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    source: Annotated[
        str | None, typer.Option("--from", help="A served folder; else the one that paths.index is served from.")
    ] = None,
) -> None:
    """Write one snapshot of what is served, with all that was written to it, while it is served."""
    from ray_apps.indexing.maintenance import live_folder, take_snapshot

    settings = load_config(config, overrides or [])
    manifest = take_snapshot(source or str(live_folder(settings)), destination, settings.index.factory)
    console.print(f"{destination}: {manifest['count']} items of model {manifest['model']}", highlight=False)


@app.command("restore")
def index_restore(
    source: Annotated[str, typer.Argument(help="A snapshot: a folder, or an address as s3://bucket/name.")],
    overrides: Overrides = None,
    config: ConfigFile = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the snapshot that is there.")] = False,
) -> None:
    """Copy a snapshot to paths.index, where `lrem serve` starts from; refuses one of another model than paths.model."""
    from lrem.modeling.model import fingerprint
    from ray_apps.indexing.maintenance import bring_back

    settings = load_config(config, overrides or [])
    model = fingerprint(settings.path("model")) if settings.path("model").exists() else None
    manifest = bring_back(source, settings.uri("index"), model, replace)
    console.print(f"{settings.uri('index')}: {manifest['count']} items", highlight=False)
