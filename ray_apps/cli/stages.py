"""The commands that run one stage each."""

from pathlib import Path
from typing import Annotated

import typer

from lrem.config import load_config, to_yaml
from ray_apps.cli.options import Catalogue, ConfigFile, DryRun, Model, Overrides, Resume, load
from ray_apps.cluster.progress import console
from ray_apps.pipeline import run_stage


def _run(name: str, config: Path | None, overrides: list[str] | None, dry_run: bool, **paths: str | None) -> None:
    run_stage(name, load(config, overrides, dry_run, **paths))


def world(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Generate the demo world: catalogue, queries, relevance judgements and a teacher's reasonings."""
    _run("world", config, overrides, dry_run)


def import_sources(config: ConfigFile = None, overrides: Overrides = None, dry_run: DryRun = False) -> None:
    """Import a catalogue, queries and judgements from other formats (settings `sources`)."""
    _run("import", config, overrides, dry_run)


def bootstrap(
    config: ConfigFile = None, overrides: Overrides = None, catalogue: Catalogue = None, dry_run: DryRun = False
) -> None:
    """Make a training set from a catalogue alone, without a query log and without a language model."""
    _run("bootstrap", config, overrides, dry_run, items=catalogue)


def curate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration, the remaining work and its cost, and stop.")
    ] = False,
) -> None:
    """Make the training set (query–reasoning–item triplets and RL pairs) from queries, a teacher and a judge."""
    settings = load_config(config, overrides or [])
    if dry_run:
        from ray_apps.curation.estimate import estimate_curation

        typer.echo(to_yaml(settings))
        typer.echo(estimate_curation(settings))
        raise typer.Exit
    run_stage("curate", settings)


def cold_start(
    config: ConfigFile = None,
    overrides: Overrides = None,
    direct: Annotated[bool, typer.Option("--direct", help="Train the direct baseline instead.")] = False,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> None:
    """Stage 1: train with SFT on the reasoning and InfoNCE on the embedding."""
    settings = load_config(config, overrides or [])
    if dry_run:
        from ray_apps.training.estimate import estimate_training

        typer.echo(to_yaml(settings))
        typer.echo(estimate_training(settings, settings.direct if direct else settings.cold_start))
        raise typer.Exit
    run_stage("direct" if direct else "cold-start", settings, resume=resume)


def mine_negatives(
    config: ConfigFile = None, overrides: Overrides = None, model: Model = None, dry_run: DryRun = False
) -> None:
    """Add hard negatives to the triplets, mined with a model and its index."""
    _run("mine-negatives", config, overrides, dry_run, model=model)


def reinforce(
    config: ConfigFile = None, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Stage 2: train with GRPO on the reasoning and InfoNCE on the embedding; vLLM samples the rollouts."""
    run_stage("reinforce", load(config, overrides, dry_run), resume=resume)


def embed(
    config: ConfigFile = None,
    overrides: Overrides = None,
    model: Model = None,
    catalogue: Catalogue = None,
    dry_run: DryRun = False,
) -> None:
    """Embed the items of a catalogue."""
    _run("embed", config, overrides, dry_run, model=model, items=catalogue)


def evaluate(
    config: ConfigFile = None,
    overrides: Overrides = None,
    url: Annotated[
        str | None, typer.Option(help="Evaluate a running `lrem serve` at this address instead of model files.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Score all available systems on the test queries; write evaluation.html and evaluation.json."""
    from lrem.evaluation.report import print_tables

    given = [*(overrides or []), *([f"evaluate.url={url}"] if url else [])]
    settings = load(config, given, dry_run)
    print_tables(console, run_stage("evaluate", settings))
    console.print(f"{settings.run_dir / 'evaluation.html'}", highlight=False)
