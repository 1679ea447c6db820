"""The commands around the search service: serve, search, and the demo that ends in it."""

import signal
from typing import Annotated

import typer

from lrem.config import load_config
from ray_apps.cli.options import Catalogue, ConfigFile, DryRun, Model, Overrides, Where, load
from ray_apps.cluster.progress import console
from ray_apps.pipeline import run_stage


def serve(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    catalogue: Catalogue = None,
    dry_run: DryRun = False,
) -> None:
    """Serve search and embeddings over HTTP until Ctrl-C; a new --catalogue is embedded and indexed first."""
    from ray_apps.cluster.session import cluster
    from ray_apps.indexing.embed import is_index_current
    from ray_apps.serving import deploy

    settings = load(config, overrides, dry_run, model=model, items=catalogue)
    is_new = catalogue is not None and not is_index_current(settings)
    with cluster(settings):
        if is_new:
            run_stage("embed", settings)
            run_stage("index", settings)
        address = deploy.start(settings)
        console.print(f"serving on {address} (Ctrl-C stops it)", highlight=False)
        try:
            signal.pause()
        finally:
            if not deploy.stop_if_owner():
                console.print("another `lrem serve` has taken over; its application keeps running", highlight=False)


def search(
    query: Annotated[str, typer.Argument(help="The search query.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    url: Annotated[
        str | None, typer.Option(help="Address of a running `lrem serve` (default: serve.host and serve.port).")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Number of items.")] = 10,
    reason: Annotated[bool, typer.Option(help="Let the model reason first, or embed the query directly.")] = True,
    where: Where = None,
    key: Annotated[str | None, typer.Option(envvar="LREM_KEY", help="An API key of serve.keys_file.")] = None,
) -> None:
    """Send one query to a running service and print the reasoning and the items."""
    from ray_apps.serving import client
    from ray_apps.serving.deploy import base_url

    settings = load_config(config, overrides or [])
    mode = "auto" if reason else "never"
    client.print_results(client.search(url or base_url(settings), query, k, mode, where, key))


def demo(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Run every stage on a generated world, print the report, and serve the result."""
    from ray_apps.demo import run

    run(load(config, overrides, dry_run))
