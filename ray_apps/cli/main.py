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

from lrem.config import load_config, to_yaml
from lrem.errors import LremError
from ray_apps.cli import index
from ray_apps.cli.options import Catalogue, ConfigFile, DryRun, Model, Overrides, Resume, Where, load
from ray_apps.cli.plan import plan
from ray_apps.cli.status import status
from ray_apps.cluster.progress import console
from ray_apps.pipeline import run_stage

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Large Reasoning Embedding Models: retrieval that thinks first.",
)
app.add_typer(index.app, name="index")

INTERRUPTED = 130  # what typer makes of Ctrl-C
errors = Console(stderr=True, soft_wrap=True)


def _stage(name: str, config: Path | None, overrides: list[str] | None, dry_run: bool) -> None:
    run_stage(name, load(config, overrides, dry_run))


@app.command()
def world(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Generate the demo world: catalogue, queries, judgements and a teacher's reasonings."""
    _stage("world", config, overrides, dry_run)


@app.command("import")
def import_sources(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Read a catalogue, queries and judgements of other formats (settings `sources`) into the files all stages read."""
    _stage("import", config, overrides, dry_run)


@app.command()
def bootstrap(
    config: ConfigFile = None, overrides: Overrides = None, catalogue: Catalogue = None, dry_run: DryRun = False
) -> None:
    """Make a training set of the catalogue alone: queries, judgements, and reasonings without a language model."""
    run_stage("bootstrap", load(config, overrides, dry_run, items=catalogue))


@app.command()
def curate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration, what there is to do and what it may cost; stop.")
    ] = False,
) -> None:
    """Make Query-CoT-Item triplets and RL pairs from queries, a teacher and a judge."""
    settings = load_config(config, overrides or [])
    if dry_run:
        from ray_apps.curation.estimate import plan

        typer.echo(to_yaml(settings))
        typer.echo(plan(settings))
        raise typer.Exit
    run_stage("curate", settings)


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
        from ray_apps.training.estimate import plan

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
    run_stage("mine-negatives", load(config, overrides, dry_run, model=model))


@app.command()
def reinforce(
    config: ConfigFile = None,
    overrides: Overrides = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Stage 2: GRPO on the reasoning and InfoNCE on the embedding, rollouts by vLLM."""
    run_stage("reinforce", load(config, overrides, dry_run), resume=resume)


@app.command()
def embed(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    catalogue: Catalogue = None,
    dry_run: DryRun = False,
) -> None:
    """Embed a catalogue into vectors."""
    run_stage("embed", load(config, overrides, dry_run, model=model, items=catalogue))


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What a shopper would type.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    url: Annotated[str | None, typer.Option(help="Address of a running `lrem serve` (serve.host, serve.port).")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many items.")] = 10,
    reason: Annotated[bool, typer.Option(help="Think first, or embed the query at once.")] = True,
    where: Where = None,
    key: Annotated[str | None, typer.Option(envvar="LREM_KEY", help="A key of serve.keys_file.")] = None,
) -> None:
    """Ask a running application."""
    from ray_apps.serving.client import search as ask
    from ray_apps.serving.client import show
    from ray_apps.serving.deploy import base_url

    settings = load_config(config, overrides or [])
    show(ask(url or base_url(settings), query, k, "auto" if reason else "never", where, key))


@app.command()
def evaluate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    url: Annotated[str | None, typer.Option(help="Ask a running `lrem serve` in place of the models' files.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Score every system at hand on the test queries, with the paper's probes; writes evaluation.html and .json."""
    from lrem.evaluation.report import print_tables

    given = [*(overrides or []), *([f"evaluate.url={url}"] if url else [])]
    settings = load(config, given, dry_run)
    print_tables(console, run_stage("evaluate", settings))
    console.print(f"{settings.run_dir / 'evaluation.html'}", highlight=False)


@app.command()
def serve(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    catalogue: Catalogue = None,
    dry_run: DryRun = False,
) -> None:
    """Serve search and embeddings over HTTP until Ctrl-C; a new --catalogue is embedded and indexed first."""
    from ray_apps.cluster.session import cluster
    from ray_apps.indexing.embed import is_indexed
    from ray_apps.serving import deploy as application

    settings = load(config, overrides, dry_run, model=model, items=catalogue)
    is_new = catalogue is not None and not is_indexed(settings)
    with cluster(settings):
        if is_new:
            run_stage("embed", settings)
            run_stage("index", settings)
        address = application.start(settings)
        console.print(f"serving on {address} (Ctrl-C stops it)", highlight=False)
        try:
            signal.pause()
        finally:
            if not application.leave():
                console.print("another `lrem serve` has taken over: its application is left as it is", highlight=False)


@app.command()
def demo(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Everything, from a generated world to a running search application, with the report."""
    from ray_apps import demo as everything

    everything.run(load(config, overrides, dry_run))


app.command()(status)
app.command()(plan)


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
    except LremError as error:
        return _fail(error, error.exit_code)
    except (FileNotFoundError, TimeoutError, ConnectionError) as error:
        return _fail(error, 1)
    except Exception as error:
        if hasattr(error, "show"):  # a usage error; typer keeps its base class private
            error.show()
            return 2
        raise


def _fail(error: Exception, code: int) -> int:
    errors.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, emoji=False)
    return code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
