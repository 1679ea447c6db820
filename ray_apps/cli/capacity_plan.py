"""`lrem plan`: what a catalogue and its traffic need, as a table and some lines. No Ray in here, and no formula."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lrem.capacity.model import USABLE, Layout, Models, Needs, Refused, best, lay_out, models, monthly
from lrem.capacity.search_cost import Constants, checked, constants
from lrem.errors import DataError
from lrem.index.ann import choose

GIB = 2**30
UNITS = {"": 1, **{letter: 1000 ** (i + 1) for i, letter in enumerate("kmgt")}}
UNITS |= {f"{letter}i": 1024 ** (i + 1) for i, letter in enumerate("kmgt")}
NUMBER = re.compile(
    r"\s*([-+]?(?:\d{1,3}(?:[,_]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)\s*([kmgt]i?)?b?\s*", re.IGNORECASE
)


def number(text: str) -> float:
    """A number as people write it; k, M, G and T are thousands, Ki, Mi, Gi and Ti of 1024.

    >>> number("76e6"), number("500k"), number("64GiB"), number("1.5 GB"), number("76,000,000")
    (76000000.0, 500000.0, 68719476736.0, 1500000000.0, 76000000.0)

    Raises:
        DataError: it is none.
    """
    found = NUMBER.fullmatch(text)
    if found is None:
        raise DataError(f"'{text}' is no number: write it as 76e6, 500k, 1.5M or 64GiB")
    digits, unit = found.groups()
    return float(re.sub("[_,]", "", digits)) * UNITS[(unit or "").lower()]


def plan(options: Mapping[str, Any], file: Path | None = None) -> Group:
    """What to print.

    Args:
        options: settings of lrem.capacity.model.Needs; texts are read as numbers, None is left out.
        file: constants in place of those that the project measured.

    Raises:
        DataError: an option that cannot be, or nothing that machines of this size can hold.
    """
    given = {name: number(value) if isinstance(value, str) else value for name, value in options.items()}
    needs = checked(Needs, {name: value for name, value in given.items() if value is not None})
    known = constants(file)
    tried = [lay_out(family, needs, known) for family in needs.structures]
    laid = [one for one in tried if isinstance(one, Layout)]
    refused = [one for one in tried if isinstance(one, Refused)]
    if not laid:
        raise DataError("; ".join(f"{one.family}: {one.why}" for one in refused))
    side = models(needs, known)
    parts = [layouts(laid, needs, side), held(laid)]
    lines = [*advice(laid, needs), *(f"{one.family}: {one.why}" for one in refused), *told(needs, side, known)]
    return Group(*parts, *(Text(line) for line in lines))


def layouts(laid: list[Layout], needs: Needs, side: Models) -> Table:
    """A row for each index choice; memory and disk in GiB."""
    title = f"{needs.items:,} items × {needs.dim} numbers, {needs.qps:g} queries/s, k = {needs.k}"
    rows = []
    for one in laid:
        cost = monthly(needs, one.machines + side.machines, side.gpus)
        cells = [
            one.what.factory,
            f"{one.shards} × {one.replicas}",
            str(one.machines),
            f"{one.replica / GIB:.2f}",
            f"{one.memory / GIB:.1f}",
            f"{one.disk / GIB:,.1f}",
            f"{one.ms:.2f}",
            f"{one.recall:.3f}{'' if one.recall >= needs.recall else ' !'}",
            f"{one.reads:,.0f}",
            "–" if cost is None else f"{cost:,.0f}",
        ]
        rows.append(cells)
    names = ["index", "shards × replicas", "machines", "a replica", "a machine", "its disk", "ms", "recall", "reads/s"]
    return filled(title, [*names, "a month"], rows)


def held(laid: list[Layout]) -> Table:
    """Bytes an item, by parts."""
    sizes = {one: (*one.parts, one.parts.total, one.rebuilt, one.store, one.saved) for one in laid}
    names = ["index", *laid[0].parts._fields, "in all", "rebuild", "items.sqlite", "ann"]
    rows = [[one.what.factory, *(f"{size / one.items:,.0f}" for size in sizes[one])] for one in laid]
    return filled("bytes an item: in a replica, more while it is rebuilt, on disk", names, rows)


def filled(title: str, names: list[str], rows: list[list[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title)
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    return table


def advice(laid: list[Layout], needs: Needs) -> list[str]:
    """The layout to take, and how to serve so."""
    chosen = best(laid, needs.recall)
    if chosen is None:
        most = max(laid, key=lambda one: one.recall)
        return [f"none is expected to find {needs.recall:.3g}: {most.what.factory} finds most, {most.recall:.3f}"]
    usual = choose(chosen.items, needs.dim)[0]
    factory = "" if usual == chosen.what.factory else f" index.factory={chosen.what.factory}"
    lines = [
        f"fewest machines at recall ≥ {needs.recall:g}: {chosen.what.factory}",
        f"  lrem serve serve.shards={chosen.shards} serve.shard.replicas={chosen.replicas}{factory}",
    ]
    if chosen.machines > 1:
        lines.append(f"  serve.index_nodes: the addresses of {chosen.machines} machines")
    if chosen.start_disk:
        lines.append(f"  at the first start {chosen.start_disk / GIB:,.0f} GiB more of a machine's disk, for a while")
    return lines


def told(needs: Needs, side: Models, known: Constants) -> list[str]:
    """Embedder and reasoner, what was kept free, and where the constants are from."""
    gpus = f"{side.gpus} GPUs" if side.gpus else "no GPU"
    if side.machines:
        gpus += f", machines of {needs.cores} cores for them: {side.machines}"
    rates = {"embedder_qps": needs.embedder_qps, "reasoner_tokens": needs.reasoner_tokens}
    own = [name.replace("_", "-") for name, given in rates.items() if given is None]
    room = "room for a rebuild or a new generation" if needs.rebuild else "no room for a rebuild"
    lines = [
        f"models: {side.embedders} embedders, {side.reasoners} reasoners for {side.tokens:,.0f} tokens/s; {gpus}",
        f"reckoned with {needs.load:.0%} of a replica's time, {needs.spare} to spare, {USABLE:.0%} of a machine's "
        f"memory, {room}, {needs.store_cached:.0%} of items.sqlite in the page cache",
        f"constants: {known.machine}, {known.command}",
    ]
    if own:
        lines.append(f"{' and '.join(own)} are those of {known.model}: give your own model's")
    return lines
