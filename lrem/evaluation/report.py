"""The report's table and plot. Knows the shape of report.json; does not compute a metric."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lrem.data.files import atomic_file
from lrem.evaluation.page import probability, verdict

CATEGORIES = ("question", "alternative", "negative", "knowledge", "easy", "hard", "all")
NAMES = {
    "bm25": "BM25",
    "bm25_stems": "BM25, stems",
    "prompt": "prompt → BM25",
    "direct": "direct",
    "cold_start": "LREM cold start",
    "lrem": "LREM + RL",
    "rewrite": "LREM's words → BM25",
    "rrf": "BM25 + LREM, RRF",
}

Scores = dict[str, dict[str, dict[str, float]]]  # system → category → metric → share


def table(title: str, scores: Scores, k: dict[str, int]) -> Table:
    """Rows are systems, columns categories; a cell is HitRate / Precision in percent."""
    columns = [c for c in CATEGORIES if any(c in row for row in scores.values())]
    columns = list(dict.fromkeys([*columns[:-1], *(c for row in scores.values() for c in row if "=" not in c), "all"]))
    columns.append(columns.pop(columns.index("all")))
    grid = Table(title=f"{title}: HitRate@{k['hit_rate']} / Precision@{k['precision']}, %")
    grid.add_column("", no_wrap=True)
    for column in columns:
        grid.add_column(column, justify="right", no_wrap=True)
    for name, row in scores.items():
        cells = (f"{100 * row[c]['hit_rate']:.1f}/{100 * row[c]['precision']:.1f}" for c in columns)
        grid.add_row(NAMES.get(name, name), *cells)
    return grid


def overview(report: dict[str, Any]) -> Table:
    """Rows are systems; columns the main measures over all queries, the primary one with its interval, and the cost."""
    primary, names = report["primary"], report["measures"]
    shown = list(dict.fromkeys([primary, "nDCG@10", "RR@10", "R@100", "Success@1"]))
    grid = Table(title="all queries, % (95 % interval over queries)")
    for column in ("", *(names[name] for name in shown), "ms a query", "thinks"):
        grid.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, row in report["systems"].items():
        low, high = report["intervals"].get(name, {}).get("all", {}).get(primary, (None, None))
        ends = "" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})"
        cells = [f"{100 * row['all'][measure]:.1f}{ends if measure == primary else ''}" for measure in shown]
        spent = report["cost"][name]
        thinks = f"{100 * spent['thinks']:.0f} %" if "thinks" in spent else ""
        cost = f"{spent['ms_per_query']:.1f}" if "ms_per_query" in spent else ""
        grid.add_row(report["names"].get(name, name), *cells, cost, thinks)
    return grid


def in_words(row: dict[str, Any], names: dict[str, str]) -> str:
    """One paired test in words.

    >>> row = {"a": "lrem", "b": "bm25", "slice": "all", "measure": "AP", "difference": 0.02, "p_holm": 0.3}
    >>> in_words(row | {"low": -0.01, "high": 0.05}, {"lrem": "LREM"})
    'LREM less bm25, all: +2.0 (-1.0 to +5.0), p 0.300, not significant'
    """
    ours, theirs = (names.get(row[side], row[side]) for side in ("a", "b"))
    ends = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return f"{ours} less {theirs}, {row['slice']}: {ends}, p {probability(row['p_holm'])}, {verdict(row)}"


def saturation(scores: Scores, k: int) -> str | None:
    """What to say where k cannot tell the systems apart: the best HitRate@k lies outside 40 to 90 %.

    >>> saturation({"a": {"all": {"hit_rate": 0.95, "precision": 1.0}}}, 30)
    'the best HitRate@30 is 95.0 %, outside 40 to 90 %: choose a smaller evaluate.k'
    """
    best = max(row["all"]["hit_rate"] for row in scores.values())
    if 0.4 <= best <= 0.9:
        return None
    size = "smaller" if best > 0.9 else "larger"
    return f"the best HitRate@{k} is {100 * best:.1f} %, outside 40 to 90 %: choose a {size} evaluate.k"


def print_tables(console: Console, report: dict[str, Any]) -> None:
    """The systems, the overrides, and the note on k."""
    console.print(table("systems", report["systems"], report["k"]))
    if "intervals" in report:
        console.print(overview(report))
        for row in report["comparisons"]:
            if row["slice"] == "all":
                console.print(in_words(row, report["names"]), highlight=False)
    if report["overrides"]:
        console.print(table("override of the reasoning", report["overrides"], report["k"]))
    if routing := report["routing"]:
        console.print(table("when to think", {name: mode["scores"] for name, mode in routing.items()}, report["k"]))
        said = ", ".join(f"{name} {100 * mode['thinks']:.0f} %" for name, mode in routing.items())
        console.print(f"queries thought over: {said}", highlight=False)
    note = saturation(report["systems"], report["k"]["hit_rate"])
    if note:
        console.print(f"note: {note}", highlight=False)


def plot(report: dict[str, Any], path: Path) -> Path:
    """Bars by category for each system, and the overrides beside them, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(13, 8), width_ratios=(3, 1), layout="constrained")
    for row, metric in enumerate(("hit_rate", "precision")):
        label = f"{'HitRate' if row == 0 else 'Precision'}@{report['k'][metric]}, %"
        _bars(grid[row][0], report["systems"], CATEGORIES, metric, label)
        probes = report["overrides"]
        heights = [100 * probes[name]["all"][metric] for name in probes]
        bars = grid[row][1].bar(list(probes), heights, color="tab:purple")
        grid[row][1].bar_label(bars, fmt="%.0f")
        grid[row][1].set(title="override of the reasoning, all queries", ylim=(0, 105))
    figure.suptitle(f"Demo world, seed {report['seed']}")
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=110)
    pyplot.close(figure)
    return path


def _bars(axes: Any, systems: Scores, categories: tuple[str, ...], metric: str, label: str) -> None:
    width = 0.8 / len(systems)
    for i, (name, row) in enumerate(systems.items()):
        places = [x + (i - (len(systems) - 1) / 2) * width for x in range(len(categories))]
        bars = axes.bar(places, [100 * row[c][metric] for c in categories], width, label=NAMES.get(name, name))
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(categories)), categories)
    axes.set(ylabel=label, ylim=(0, 119))
    axes.legend(ncols=4, fontsize=8, loc="upper center")
