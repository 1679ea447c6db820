"""`lrem plan`: the command's options. What is reckoned with them: ray_apps/cli/capacity_plan.py."""

from pathlib import Path
from typing import Annotated

import typer

from ray_apps.cluster.progress import console


def plan(
    items: Annotated[str, typer.Option(help="Items of the catalogue, as 76e6 or 500k.")],
    dim: Annotated[str, typer.Option(help="Numbers of a vector.")],
    qps: Annotated[str, typer.Option(help="Queries a second at the peak.")],
    k: Annotated[str | None, typer.Option("-k", "--k", help="Items that a query wants.")] = None,
    recall: Annotated[str | None, typer.Option(help="Share of the best items that is to be found.")] = None,
    payload: Annotated[str | None, typer.Option(help="Bytes of an item's payload as JSON.")] = None,
    texts: Annotated[str | None, typer.Option(help="Its fields of words that no two items share, as titles.")] = None,
    text: Annotated[str | None, typer.Option(help="Bytes of one of them.")] = None,
    fields: Annotated[str | None, typer.Option(help="Other fields.")] = None,
    memory: Annotated[str | None, typer.Option(help="Of a machine, as 64GiB.")] = None,
    cores: Annotated[str | None, typer.Option(help="Of a machine.")] = None,
    spare: Annotated[str | None, typer.Option(help="Replicas of each part that may be lost.")] = None,
    load: Annotated[str | None, typer.Option(help="Share of a replica's time that may be used.")] = None,
    search_ms: Annotated[str | None, typer.Option(help="Milliseconds that a search in a shard may take.")] = None,
    store_cached: Annotated[str | None, typer.Option(help="Share of items.sqlite in the page cache.")] = None,
    rebuild: Annotated[bool, typer.Option(help="Keep room for a rebuild or a new generation.")] = True,
    structure: Annotated[list[str] | None, typer.Option(help="An index choice to reckon; may be repeated.")] = None,
    think: Annotated[str | None, typer.Option(help="Share of the queries that are thought over.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens of a thought.")] = None,
    cached: Annotated[str | None, typer.Option(help="Share of the queries that the ingress still knows.")] = None,
    embedder_qps: Annotated[str | None, typer.Option(help="Queries a second of one embedder.")] = None,
    reasoner_tokens: Annotated[str | None, typer.Option(help="Tokens a second of one reasoner.")] = None,
    embedder_gpus: Annotated[str | None, typer.Option(help="GPUs of one embedder, as 0.5.")] = None,
    reasoner_gpus: Annotated[str | None, typer.Option(help="GPUs of one reasoner.")] = None,
    machine_price: Annotated[str | None, typer.Option(help="Of a machine for an hour.")] = None,
    gpu_price: Annotated[str | None, typer.Option(help="Of a GPU for an hour.")] = None,
    constants: Annotated[Path | None, typer.Option(help="Constants that benchmarks/capacity.py wrote.")] = None,
) -> None:
    """Reckon shards, replicas, memory, machines, GPUs, recall and cost of each index choice; starts nothing."""
    given = dict(locals())
    from ray_apps.cli.capacity_plan import plan as reckon

    file = given.pop("constants")
    given["structures"] = tuple(given.pop("structure") or ()) or None
    console.print(reckon(given, file))
