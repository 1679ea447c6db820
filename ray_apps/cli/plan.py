"""`lrem plan`: compare index structures for a catalogue and its traffic, and recommend one. Starts nothing."""

from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import Annotated

from pydantic import ValidationError
from rich.console import Group
from rich.table import Table
from rich.text import Text
from typer import Option

from lrem.capacity.model import GIB, Layout, ModelReplicas, Requirements, lay_out, model_replicas
from lrem.errors import DataError
from ray_apps.cluster.progress import console

COLUMNS = ("index", "bytes/item", "GiB/replica", "shards", "replicas", "queries/s", "ms", "recall", "machines", "GPUs")


def plan(**options: object) -> None:
    """Compare index structures: memory, shards, replicas, machines, GPUs, recall, latency, cost. Starts nothing."""
    console.print(report(options))


plan.__signature__ = Signature(  # type: ignore[attr-defined]  # typer reads the options from here
    [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.is_required() else field.default,
            annotation=Annotated[field.annotation, Option(help=field.description)],
        )
        for name, field in Requirements.model_fields.items()
    ]
)


def report(options: Mapping[str, object]) -> Group:
    """Return the table and the recommendation. Raises DataError if an option is invalid, or nothing fits."""
    try:
        needs = Requirements.model_validate(options)
    except ValidationError as error:
        problems = (f"--{e['loc'][0]}".replace("_", "-") + f" {e['input']}: {e['msg']}" for e in error.errors())
        raise DataError("; ".join(problems)) from error
    models, layouts = model_replicas(needs), [lay_out(name, needs) for name in needs.structure]
    possible = [layout for layout in layouts if not layout.problem]
    impossible = [f"{layout.factory}: {layout.problem}" for layout in layouts if layout.problem]
    if not possible:
        raise DataError("; ".join(impossible))
    lines = [
        recommendation(possible, needs),
        *impossible,
        f"models: {models.embedders} embedders and {models.reasoners} reasoners on {models.gpus} GPUs and "
        f"{models.machines} machines, with --embedder-qps {needs.embedder_qps:g} and --reasoner-tokens "
        f"{needs.reasoner_tokens:g}: set your own model's rates",
    ]
    return Group(table(possible, needs, models), *map(Text, lines))


def table(layouts: list[Layout], needs: Requirements, models: ModelReplicas) -> Table:
    """Return one row per structure; machines and cost include those of the models."""
    result = Table(title=f"{needs.items:,.0f} items × {needs.dim} dimensions, {needs.qps:g} queries/s")
    for i, column in enumerate([*COLUMNS, "month"]):
        result.add_column(column, justify="right" if i else "left", no_wrap=i == 0)
    for layout in layouts:
        machines = layout.machines + models.machines
        cost = 730 * (machines * needs.machine_price + models.gpus * needs.gpu_price)  # hours per month
        result.add_row(
            layout.factory,
            f"{layout.item_bytes:,.0f}",
            f"{layout.replica_bytes / GIB:.2f}",
            f"{layout.shards}",
            f"{layout.replicas}",
            f"{1000 * needs.load / layout.ms:,.0f}",
            f"{layout.ms:.2f}",
            f"{layout.recall:.3f}{'' if layout.recall >= needs.recall else ' !'}",
            f"{machines}",
            f"{models.gpus}",
            f"{cost:,.0f}" if cost else "–",
        )
    return result


def recommendation(layouts: list[Layout], needs: Requirements) -> str:
    """Return the layout of sufficient recall with the fewest machines, then the fewest busy cores."""
    sufficient = [layout for layout in layouts if layout.recall >= needs.recall]
    if not sufficient:
        return f"no structure reaches recall {needs.recall:g}"
    best = min(sufficient, key=lambda layout: (layout.machines, layout.shards * layout.ms))
    return f"""recommended: {best.factory} on {best.machines} machines, each with {best.disk / GIB:,.0f} GiB of disk:
  lrem serve serve.shards={best.shards} serve.shard.replicas={best.replicas} index.factory={best.factory}"""
