"""`lrem status`: what runs where."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from lrem.config import load_config
from ray_apps.cli.options import ConfigFile, Overrides
from ray_apps.cluster.progress import console


def status(
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what runs where in a Ray cluster: machines, jobs, stages, actors, the service."""
    from ray_apps.cluster.status import read_status
    from ray_apps.cluster.status_screen import render

    current = read_status(load_config(config, overrides or []))
    if as_json:
        typer.echo(json.dumps(asdict(current), default=str))
        return
    console.print(render(current))
