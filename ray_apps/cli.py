"""The command line `lrem`: one configuration, one command a stage, the same under `ray job submit`."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from lrem.config import Config, ConfigError, load_config, to_yaml
from lrem.index import BuildError, SnapshotError
from lrem.schema import DataError
from ray_apps.progress import console
from ray_apps.stages import run_stage

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Large Reasoning Embedding Models: retrieval that thinks first.",
)

INTERRUPTED = 130  # what typer makes of Ctrl-C
errors = Console(stderr=True, soft_wrap=True)
ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: dotted.key=value …")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of a stopped run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]
Model = Annotated[Path | None, typer.Option("--model", help="Model folder (paths.model).")]
Catalogue = Annotated[Path | None, typer.Option("--catalogue", help="Items parquet (paths.items).")]


def _stage(name: str, config: Path | None, overrides: list[str] | None, dry_run: bool) -> None:
    run_stage(name, _load(config, overrides, dry_run))


def _load(config: Path | None, overrides: list[str] | None, dry_run: bool, **paths: Path | None) -> Config:
    given = [f"paths.{name}={path}" for name, path in paths.items() if path is not None]
    settings = load_config(config, [*(overrides or []), *given])
    if dry_run:
        typer.echo(to_yaml(settings))
        raise typer.Exit
    return settings


@app.command()
def world(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Generate the demo world: catalogue, queries, judgements and a teacher's reasonings."""
    _stage("world", config, overrides, dry_run)


@app.command()
def curate(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Make Query-CoT-Item triplets and RL pairs from queries, reasonings and judgements."""
    _stage("curate", config, overrides, dry_run)


@app.command()
def cold_start(
    config: ConfigFile = None,
    overrides: Overrides = None,
    direct: Annotated[bool, typer.Option("--direct", help="Train the direct baseline instead.")] = False,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Stage 1: SFT on the reasoning and InfoNCE on the embedding."""
    settings = load_config(config, overrides or [])
    if dry_run:
        from ray_apps.plan import plan

        typer.echo(to_yaml(settings))
        typer.echo(plan(settings, settings.direct if direct else settings.cold_start))
        raise typer.Exit
    run_stage("direct" if direct else "cold-start", settings, resume=resume)


@app.command()
def mine_negatives(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    dry_run: DryRun = False,
) -> None:
    """Add hard negatives to the triplets, found with a model and its index."""
    run_stage("mine-negatives", _load(config, overrides, dry_run, model=model))


@app.command()
def reinforce(
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Stage 2: GRPO on the reasoning and InfoNCE on the embedding, rollouts by vLLM."""
    run_stage("reinforce", _load(config, overrides, dry_run), resume=resume)


@app.command()
def embed(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    catalogue: Catalogue = None,
    dry_run: DryRun = False,
) -> None:
    """Embed a catalogue into vectors."""
    run_stage("embed", _load(config, overrides, dry_run, model=model, items=catalogue))


@app.command()
def index(
    config: ConfigFile = None,
    overrides: Overrides = None,
    catalogue: Catalogue = None,
    dry_run: DryRun = False,
) -> None:
    """Build the Faiss snapshot from vectors."""
    run_stage("index", _load(config, overrides, dry_run, items=catalogue))


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What a shopper would type.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    url: Annotated[str | None, typer.Option(help="Address of a running `lrem serve` (serve.host, serve.port).")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many items.")] = 10,
    reason: Annotated[bool, typer.Option(help="Think first, or embed the query at once.")] = True,
    where: Annotated[
        str | None, typer.Option("--filter", help='Which items may be found, as JSON: {"price": {"$lt": 20}}.')
    ] = None,
) -> None:
    """Ask a running application."""
    from ray_apps.client import search as ask
    from ray_apps.client import show
    from ray_apps.serve import base_url

    settings = load_config(config, overrides or [])
    show(ask(url or base_url(settings), query, k, "always" if reason else "never", where))


@app.command()
def evaluate(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Score BM25, direct, cold start and LREM on the test queries, and the overrides."""
    from lrem.evaluation.report import print_tables

    print_tables(console, run_stage("evaluate", _load(config, overrides, dry_run)))


@app.command()
def serve(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    dry_run: DryRun = False,
) -> None:
    """Serve search and embeddings over HTTP until Ctrl-C."""
    from ray_apps import serve as application
    from ray_apps.cluster import cluster

    settings = _load(config, overrides, dry_run, model=model)
    with cluster(settings):
        address = application.start(settings)
        console.print(f"serving on {address} (Ctrl-C stops it)", highlight=False)
        try:
            signal.pause()
        finally:
            application.stop()


@app.command()
def demo(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Everything, from a generated world to a running search application, with the report."""
    from ray_apps import demo as everything

    everything.run(_load(config, overrides, dry_run))


def main() -> None:
    """Entry point: known errors end in one line and exit code 1 (2: configuration), Ctrl-C in 130."""
    signal.signal(signal.SIGTERM, _interrupt)  # `ray job stop` ends a job like Ctrl-C
    sys.exit(_guard(app))


def _guard(command: Callable[..., Any]) -> int:
    try:
        code = command(standalone_mode=False) or 0
        if code == INTERRUPTED:
            errors.print("stopped; nothing is left half written")
        return code
    except ConfigError as error:
        return _fail(error, 2)
    except (DataError, SnapshotError, BuildError, FileNotFoundError, TimeoutError, ConnectionError) as error:
        return _fail(error, 1)
    except Exception as error:
        if hasattr(error, "show"):  # a usage error of the command line itself
            error.show()
            return 2
        if type(error).__name__ in (
            "TrainingError",
            "RolloutError",
        ):  # their modules bring Ray and torch, which help does not need
            return _fail(error, 1)
        raise


def _fail(error: Exception, code: int) -> int:
    errors.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, emoji=False)
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
