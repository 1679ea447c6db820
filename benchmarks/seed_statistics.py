"""From the scores per query of each seed to means, intervals, gains and the tables of docs/results.md."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from lrem.evaluation.metrics import HARD

QueryScores = Mapping[str, Sequence[float]]  # query_id → (HitRate, Precision)
Means = dict[str, tuple[float, float]]  # group → mean (HitRate, Precision)
LABELS = {"lrem": "LREM", "perfect": "oracle"}  # of the systems and overrides; others are shown by their key
METRICS = ("hit_rate", "precision")
MACRO, MICRO = "hard", "hard, micro"
GROUPS = (*HARD, "composition", "easy", MACRO, MICRO, "explained", "unexplained")
MARK = "<!-- written by make reproduce, do not edit below -->"


def group_means(scores: QueryScores, queries: Mapping[str, Mapping[str, Any]]) -> Means:
    """Average by group: `hard` is the mean of its five groups (macro), `hard, micro` the mean of their queries.

    Args:
        queries: query_id → its row: category, slice, explained.
    """
    groups = members({query_id: queries[query_id] for query_id in scores})
    means = {group: np.mean([scores[query_id] for query_id in ids], axis=0) for group, ids in groups.items()}
    means[MACRO] = np.mean([means[kind] for kind in (*HARD, "composition") if kind in means], axis=0)
    return {group: (float(hit), float(precision)) for group, (hit, precision) in means.items()}


def groups_of(row: Mapping[str, Any]) -> list[str]:
    """Return the groups that a test query belongs to."""
    if row["category"] == "easy":
        return ["easy"]
    kind = row["category"] if row["slice"] == "interpolation" else "composition"
    return [kind, MICRO, "explained" if row["explained"] else "unexplained"]


def members(queries: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return group → ids of its queries."""
    groups: dict[str, list[str]] = {}
    for query_id, row in queries.items():
        for group in groups_of(row):
            groups.setdefault(group, []).append(query_id)
    if "unexplained" not in groups:  # the teacher knows every fact, so the group would be all queries
        groups.pop("explained", None)
    return groups


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % interval over seeds, by Student's t; 0 for a single seed.

    >>> [round(value, 3) for value in interval([1.0, 2.0, 3.0])]
    [2.0, 2.484]
    """
    if len(values) < 2:
        return float(np.mean(values)), 0.0
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def over_seeds(means: Sequence[Means]) -> dict[str, dict[str, Any]]:
    """Return group → metric → `mean`, `half` (half-width of the 95 % interval) and `seeds`; all values are shares."""
    table: dict[str, dict[str, Any]] = {}
    for group in [group for group in GROUPS if all(group in seed for seed in means)]:
        table[group] = {}
        for place, metric in enumerate(METRICS):
            values = [seed[group][place] for seed in means]
            mean, half = interval(values)
            table[group][metric] = {"mean": mean, "half": half, "seeds": values}
    return table


def gains(ours: Sequence[Means], theirs: Sequence[Means]) -> dict[str, dict[str, Any]]:
    """Return relative gains as in the paper: each seed's ratio minus one, then mean and interval.

    A group in which the other system scores 0 has no gain.
    """
    ratios = []
    for a, b in zip(ours, theirs, strict=True):
        shared = [group for group in a if all(b[group])]
        ratios.append({group: (a[group][0] / b[group][0] - 1, a[group][1] / b[group][1] - 1) for group in shared})
    return over_seeds(ratios)


def write_page(report: Mapping[str, Any], page: Path) -> None:
    """Write the tables below the mark in the page; the text above the mark is kept."""
    before = page.read_text(encoding="utf-8").partition(MARK)[0] if page.exists() else "# Results\n\n"
    k = report["k"]
    title = f"HitRate@{k['k']} / Precision@{k['precision_k']}, %, mean ± half of the 95 % interval over seeds"
    parts = [
        table(f"Greedy reasoning: {title}", report["greedy"]),
        table(f"Sampled reasoning, temperature 1: {title}", report["sampled"]),
        table(f"Override of the reasoning of LREM: {title}", report["overrides"]),
        table("Relative gain in HitRate / Precision, %, mean ± half of the 95 % interval over seeds", report["gains"]),
    ]
    if report["lengths"]:
        first = report["seeds"][0]
        parts.append(table(f"Budget of reasoning in tokens, seed {first} alone: {title}", report["lengths"]))
    page.write_text(f"{before.rstrip()}\n\n{MARK}\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")


def table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Format a Markdown table with one row per system and one column per group."""
    groups = [group for group in GROUPS if any(group in row for row in rows.values())]
    lines = [f"**{title}**", "", f"| | {' | '.join(groups)} |", f"| --- |{' --- |' * len(groups)}"]
    for name, row in rows.items():
        cells = [cell(row[group]) if group in row else "" for group in groups]
        lines.append(f"| {LABELS.get(name, name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Format `HitRate / Precision ± half-widths`, in percent."""
    means = [f"{100 * value['mean']:.1f}" for value in metrics.values()]
    halves = [f"{100 * value['half']:.1f}" for value in metrics.values()]
    spread = f" ± {' / '.join(halves)}" if any(value["half"] for value in metrics.values()) else ""
    return f"{' / '.join(means)}{spread}"
