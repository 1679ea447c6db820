"""The report's terminal tables and its plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from lrem.data.files import atomic_file
from lrem.evaluation.conclusions import verdict
from lrem.evaluation.formatting import probability
from lrem.evaluation.page_tables import VARIANT_LABELS
from lrem.evaluation.report_view import SliceScores

CATEGORIES = ("question", "alternative", "negative", "knowledge", "easy", "hard", "all")
LABELS = {  # of the systems, by key
    "bm25": "BM25",
    "bm25_stems": "BM25, stems",
    "prompt": "prompt → BM25",
    "direct": "direct",
    "cold_start": "LREM cold start",
    "lrem": "LREM + RL",
    "rewrite": "LREM's words → BM25",
    "rrf": "BM25 + LREM, RRF",
}


def score_table(
    title: str, scores: SliceScores, k: Mapping[str, int], labels: Mapping[str, str] | None = None
) -> Table:
    """Build a table with one column per category, and HitRate / Precision in percent.

    Args:
        scores: one row per system or variant. labels: name of a row → what to show for it.
    """
    columns = [c for c in CATEGORIES if any(c in row for row in scores.values())]
    columns = list(dict.fromkeys([*columns[:-1], *(c for row in scores.values() for c in row if "=" not in c), "all"]))
    columns.append(columns.pop(columns.index("all")))
    table = Table(title=f"{title}: HitRate@{k['hit_rate']} / Precision@{k['precision']}, %")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in scores.items():
        cells = (f"{100 * row[c]['hit_rate']:.1f}/{100 * row[c]['precision']:.1f}" for c in columns)
        table.add_row((labels or {}).get(name, name), *cells)
    return table


def overview_table(report: dict[str, Any]) -> Table:
    """Build a table with one row per system: the main measures over all queries, and the cost.

    The primary measure comes with its interval.
    """
    primary, names = report["primary"], report["measures"]
    shown = list(dict.fromkeys([primary, "nDCG@10", "RR@10", "R@100", "Success@1"]))
    table = Table(title="all queries, % (95 % interval over queries)")
    for column in ("", *(names[name] for name in shown), "ms per query", "reasoned"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, row in report["systems"].items():
        low, high = report["intervals"].get(name, {}).get("all", {}).get(primary, (None, None))
        ends = "" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})"
        cells = [f"{100 * row['all'][measure]:.1f}{ends if measure == primary else ''}" for measure in shown]
        cost = report["cost"][name]
        ms = f"{cost['ms_per_query']:.1f}" if "ms_per_query" in cost else ""
        reasoned = f"{100 * cost['thinks']:.0f} %" if "thinks" in cost else ""
        table.add_row(report["names"].get(name, name), *cells, ms, reasoned)
    return table


def comparison_line(row: dict[str, Any], names: dict[str, str]) -> str:
    """Describe one paired test in a line.

    >>> row = {"a": "lrem", "b": "bm25", "slice": "all", "measure": "AP", "difference": 0.02, "p_holm": 0.3}
    >>> comparison_line(row | {"low": -0.01, "high": 0.05}, {"lrem": "LREM"})
    'LREM minus bm25, all: +2.0 (-1.0 to +5.0), p 0.300, not significant'
    """
    first, second = (names.get(row[side], row[side]) for side in ("a", "b"))
    difference = f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
    return f"{first} minus {second}, {row['slice']}: {difference}, p {probability(row['p_holm'])}, {verdict(row)}"


def saturation_note(scores: SliceScores, k: int) -> str | None:
    """Return a warning if k cannot tell the systems apart: the best HitRate@k lies outside 40 to 90 %.

    >>> saturation_note({"a": {"all": {"hit_rate": 0.95, "precision": 1.0}}}, 30)
    'the best HitRate@30 is 95.0 %, outside 40 to 90 %: choose a smaller evaluate.k'
    """
    best = max(row["all"]["hit_rate"] for row in scores.values())
    if 0.4 <= best <= 0.9:
        return None
    size = "smaller" if best > 0.9 else "larger"
    return f"the best HitRate@{k} is {100 * best:.1f} %, outside 40 to 90 %: choose a {size} evaluate.k"


def print_tables(console: Console, report: dict[str, Any]) -> None:
    """Print the systems, the comparisons, the probes, and the note on k."""
    console.print(score_table("systems", report["systems"], report["k"], LABELS))
    if "intervals" in report:
        console.print(overview_table(report))
        for row in report["comparisons"]:
            if row["slice"] == "all":
                console.print(comparison_line(row, report["names"]), highlight=False)
    if report["overrides"]:
        console.print(score_table("override of the reasoning", report["overrides"], report["k"], VARIANT_LABELS))
    if routing := report["routing"]:
        scores = {name: mode["scores"] for name, mode in routing.items()}
        console.print(score_table("when to reason", scores, report["k"]))
        shares = ", ".join(f"{name} {100 * mode['thinks']:.0f} %" for name, mode in routing.items())
        console.print(f"queries with reasoning: {shares}", highlight=False)
        if threshold := report.get("think_below"):
            console.print(
                f"serve.think_below is {threshold['set']:g}; on these queries {threshold['best']:.10g} gives the best "
                f"{report['primary']}",
                highlight=False,
            )
    note = saturation_note(report["systems"], report["k"]["hit_rate"])
    if note:
        console.print(f"note: {note}", highlight=False)


def plot(report: dict[str, Any], path: Path) -> Path:
    """Draw bars by category for each system, and the overrides beside them, as a PNG; returns `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(2, 2, figsize=(13, 8), width_ratios=(3, 1), layout="constrained")
    for row, metric in enumerate(("hit_rate", "precision")):
        label = f"{'HitRate' if row == 0 else 'Precision'}@{report['k'][metric]}, %"
        _bars(grid[row][0], report["systems"], CATEGORIES, metric, label)
        overrides = report["overrides"]
        heights = [100 * scores["all"][metric] for scores in overrides.values()]
        bars = grid[row][1].bar([VARIANT_LABELS.get(name, name) for name in overrides], heights, color="tab:purple")
        grid[row][1].bar_label(bars, fmt="%.0f")
        grid[row][1].set(title="override of the reasoning, all queries", ylim=(0, 105))
    figure.suptitle(f"Demo world, seed {report['seed']}")
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=110)
    pyplot.close(figure)
    return path


def _bars(axes: Axes, systems: SliceScores, categories: tuple[str, ...], metric: str, label: str) -> None:
    width = 0.8 / len(systems)
    for i, (name, row) in enumerate(systems.items()):
        places = [x + (i - (len(systems) - 1) / 2) * width for x in range(len(categories))]
        bars = axes.bar(places, [100 * row[c][metric] for c in categories], width, label=LABELS.get(name, name))
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks(range(len(categories)), categories)
    axes.set(ylabel=label, ylim=(0, 119))
    axes.legend(ncols=4, fontsize=8, loc="upper center")
