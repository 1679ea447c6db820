"""The datasheet of a curated set: what went in, what every step did to it, what came out. Knows counters; no data.

Source: Gebru et al., "Datasheets for datasets" (2021), in the form of what can be counted.
"""

from typing import Any

from lrem.curation.difficulty import BINS
from lrem.curation.judging import agreement

BARS = " ▁▂▃▄▅▆▇█"
NEAR_OTHERS = "left out: near a query of another split"
PARTS = {"cold_start": "cold start", "rl": "reinforcement", "dev": "dev", "test": "test"}


def make(
    settings: dict[str, Any],
    steps: dict[str, dict[str, Any]],
    groups: dict[str, int],
    outcomes: dict[str, int],
    queries: dict[str, int],
    rows: dict[str, int],
    examples: list[dict[str, Any]],
) -> dict[str, Any]:
    """Put a datasheet together.

    Args:
        steps: counters of `found`, `taught` and `decided`. groups: counters of near-duplicates.
        queries, rows: by part of the split.
    """
    found, taught, decided = steps["found"], steps["taught"], steps["decided"]
    curate = settings["curate"]
    return {
        "retriever": curate["retriever"],
        "top_k": curate["top_k"],
        "difficulty": {
            "thresholds": {name: value for name, value in curate["difficulty"].items() if value is not None},
            "queries": found["queries"],
            "hard": found["hard"],
            "histograms": {name: found[name] for name in ("recall", "margin", "overlap")},
        },
        "teacher": {"kind": curate["teacher"], "model": curate["llm"]["model"] if curate["teacher"] == "llm" else None},
        "phrases": {"written": taught["phrases"]} | {k: n for k, n in taught.items() if k.startswith("dropped: ")},
        "judge": judge(curate, decided),
        "outcomes": outcomes,
        "split": {
            name: {"queries": queries.get(key, 0), "rows": rows.get(key, 0)}
            for key, name in PARTS.items()
            if rows.get(key)
        },
        "near-duplicates": groups,
        "seed": settings["seed"],
        "examples": examples,
    }


def judge(curate: dict[str, Any], decided: dict[str, Any]) -> dict[str, Any]:
    """Who judged, how many pairs, and how far that agrees with the known grades."""
    if curate["judge"] == "known":
        return {"kind": "known"}
    yes_yes, yes_no, no_yes, no_no = decided["agreement"]
    judged = [True] * (yes_yes + yes_no) + [False] * (no_yes + no_no)
    known = [True] * yes_yes + [False] * yes_no + [True] * no_yes + [False] * no_no
    return {
        "kind": curate["judge"],
        "model": curate["judge_llm"]["model"] if curate["judge"] == "llm" else curate["cross_encoder"],
        "accept": curate["accept"],
        "pairs": decided["judged"],
        "without a readable answer": decided["unjudged"],
        "agreement with known grades": agreement(judged, known),
    }


def bars(counts: list[int]) -> str:
    """A histogram as one line of blocks, empty bins as spaces.

    >>> bars([0, 1, 8, 4])
    ' ▁█▄'
    """
    most = max(counts, default=0)
    return "".join(BARS[-(-8 * n // most)] if n else " " for n in counts)


def markdown(sheet: dict[str, Any]) -> str:
    """The datasheet as a page."""
    hard = sheet["difficulty"]
    lines = ["# Datasheet", "", f"Retriever {sheet['retriever']}, top {sheet['top_k']}; seed {sheet['seed']}.", ""]
    lines += ["## Difficulty", "", f"{hard['hard']} of {hard['queries']} queries are hard."]
    limits = [f"{name.replace('_', ' ')} {value}" for name, value in hard["thresholds"].items()]
    lines += [f"Hard is: {', or '.join(limits) or 'every query'}.", "", "| measure | 0 to 1 | counts | unknown |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, counts in hard["histograms"].items():
        told = " ".join(map(str, counts[:BINS]))
        lines.append(f"| {name} | `{bars(counts[:BINS])}` | {told} | {counts[BINS]} |")
    lines += ["", "## Teacher and rules", ""]
    lines += [f"- {key}: {value}" for key, value in (sheet["teacher"] | sheet["phrases"]).items() if value is not None]
    lines += ["", "## Judge", ""]
    lines += [f"- {key}: {value}" for key, value in sheet["judge"].items()]
    lines += ["", "## What became of the queries", "", "| outcome | queries |", "| --- | --- |"]
    lines += [f"| {name} | {n} |" for name, n in sorted(sheet["outcomes"].items(), key=lambda pair: -pair[1])]
    lines += ["", "## Split", "", "| part | queries | rows |", "| --- | --- | --- |"]
    lines += [f"| {name} | {part['queries']} | {part['rows']} |" for name, part in sheet["split"].items()]
    near = sheet["near-duplicates"]
    lines += [
        "",
        f"{near['near-duplicates']} queries are near-duplicates of another and went where it went; the largest ",
    ]
    lines[-1] += f"group has {near['largest group']}."
    if left := near.get(NEAR_OTHERS):
        lines[-1] += f" {left} more were {NEAR_OTHERS}."
    lines += ["", "## Examples", "", "| query | reasoning | an item |", "| --- | --- | --- |"]
    cells = ("query", "reasoning", "item")
    lines += [f"| {' | '.join(str(row[c]).replace('|', '/') for c in cells)} |" for row in sheet["examples"]]
    return "\n".join(lines) + "\n"
