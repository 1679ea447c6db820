"""The report's table and plot. Knows the shape of report.json; does not compute a metric."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lrem.files import atomic_file

CATEGORIES = ("question", "alternative", "negative", "knowledge", "easy", "hard", "all")
NAMES = {
    "bm25": "BM25",
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
    grid = Table(title=f"{title}: HitRate@{k['hit_rate']} / Precision@{k['precision']}, %")
    grid.add_column("", no_wrap=True)
    for column in columns:
        grid.add_column(column, justify="right", no_wrap=True)
    for name, row in scores.items():
        cells = (f"{100 * row[c]['hit_rate']:.1f}/{100 * row[c]['precision']:.1f}" for c in columns)
        grid.add_row(NAMES.get(name, name), *cells)
    return grid


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
