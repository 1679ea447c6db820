"""The commands of `lrem index`."""

from typing import Annotated

import typer

from lrem.config import load_config
from ray_apps.cli.options import Catalogue, ConfigFile, DryRun, Overrides, Source, Where, in_home, load
from ray_apps.cluster.progress import console
from ray_apps.pipeline import run_stage

app = typer.Typer(no_args_is_help=True, help="Build, inspect, measure, save and restore an index.")


@app.command("build")
def index_build(
    config: ConfigFile = None,
    overrides: Overrides = None,
    catalogue: Catalogue = None,
    dry_run: DryRun = False,
) -> None:
    """Build the index snapshot (paths.index) from vectors and the catalogue."""
    run_stage("index", load(config, overrides, dry_run, items=catalogue))


@app.command("stats")
def index_stats(config: ConfigFile = None, overrides: Overrides = None, source: Source = None) -> None:
    """Show what an index contains; verify the checksums of a snapshot."""
    from ray_apps.indexing.maintenance import index_stats
    from ray_apps.indexing.maintenance import print_stats as print_stats

    settings = load_config(config, overrides or [])
    print_stats(index_stats(source or settings.uri("index"), settings.index.factory))


@app.command("recall")
def index_recall(
    config: ConfigFile = None,
    overrides: Overrides = None,
    source: Source = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Number of items per query.")] = 10,
    queries: Annotated[int, typer.Option(min=1, help="Number of queries.")] = 200,
    where: Where = None,
) -> None:
    """Measure recall@k and latency of a snapshot against exact search, at several search efforts."""
    from ray_apps.indexing.maintenance import recall_table
    from ray_apps.serving.client import parse_filter

    settings = load_config(config, overrides or [])
    origin, table = recall_table(settings, source or settings.uri("index"), k, queries, parse_filter(where))
    console.print(table)
    console.print(f"queries: {origin}", markup=False, highlight=False)


@app.command("snapshot")
def index_snapshot(
    destination: Annotated[
        str, typer.Argument(callback=in_home, help="A new folder, or a URL such as s3://bucket/name.")
    ],
    overrides: Overrides = None,
    config: ConfigFile = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--from", callback=in_home, help="Folder of a live index (default: the one that serves paths.index)."
        ),
    ] = None,
) -> None:
    """Save a live index, with everything written to it, as one snapshot, while it is served."""
    from ray_apps.indexing.maintenance import save_served_index, served_folder

    settings = load_config(config, overrides or [])
    manifest = save_served_index(source or str(served_folder(settings)), destination, settings.index.factory)
    console.print(f"{destination}: {manifest['count']} items of model {manifest['model']}", highlight=False)


@app.command("restore")
def index_restore(
    source: Annotated[
        str, typer.Argument(callback=in_home, help="A snapshot: a folder, or a URL such as s3://bucket/name.")
    ],
    overrides: Overrides = None,
    config: ConfigFile = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the existing snapshot.")] = False,
) -> None:
    """Copy a snapshot to paths.index, which `lrem serve` reads; it must be of the model in paths.model."""
    from lrem.modeling.model import fingerprint
    from ray_apps.indexing.maintenance import restore_index

    settings = load_config(config, overrides or [])
    model = fingerprint(settings.path("model")) if settings.path("model").exists() else None
    manifest = restore_index(source, settings.uri("index"), model, replace)
    console.print(f"{settings.uri('index')}: {manifest['count']} items", highlight=False)
