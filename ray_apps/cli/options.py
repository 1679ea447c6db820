"""Options that several commands share, and how they become a configuration."""

from pathlib import Path
from typing import Annotated

import typer

from lrem.config import Config, load_config, to_yaml
from lrem.config.paths import home


def in_home(path: str | None) -> str | None:
    """Return a folder or URL with `~` replaced by the home folder: a shell leaves it in --from=~/x."""
    return None if path is None else str(home(path)) if path.startswith("~") else path


ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: dotted.key=value …")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue a stopped run from its newest checkpoint.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
Model = Annotated[str | None, typer.Option("--model", help="Model folder (paths.model).")]
Catalogue = Annotated[str | None, typer.Option("--catalogue", help="Parquet file or folder of items (paths.items).")]
Source = Annotated[
    str | None,
    typer.Option(
        "--from",
        callback=in_home,
        help="A snapshot (folder or URL) or the folder of a live index (default: paths.index).",
    ),
]
Where = Annotated[str | None, typer.Option("--filter", help='Filter on payload as JSON: {"price": {"$lt": 20}}.')]


def load(config: Path | None, overrides: list[str] | None, dry_run: bool, **paths: str | None) -> Config:
    """Return the settings of a command; with `dry_run`, print them and end the command.

    Args:
        paths: values of the command's own options for keys of `paths`.

    Raises:
        ConfigError: see load_config.
    """
    settings = load_config(config, overrides or [], {name: path for name, path in paths.items() if path is not None})
    if dry_run:
        typer.echo(to_yaml(settings))
        raise typer.Exit
    return settings
