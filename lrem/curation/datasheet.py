"""The datasheet of a curated set: what went in, what each step did to it, and what came out.

Source: Gebru et al., "Datasheets for datasets" (2021), reduced to what can be counted.
"""

from typing import Any, NamedTuple

from lrem.curation.difficulty import BINS
from lrem.curation.verdicts import judge_agreement
from lrem.data.counters import Counters

BLOCKS = " ▁▂▃▄▅▆▇█"
NEAR_OTHERS = "left out: near a query of another split"
SPLIT_TITLES = {"cold_start": "cold start", "rl": "reinforcement", "dev": "dev", "test": "test"}


class CurationCounters(NamedTuple):
    """The counters that a datasheet is made from."""

    finder: Counters  # of each step, summed over all parts
    teacher: Counters
    judge: Counters
    near_duplicates: Counters
    outcomes: dict[str, int]  # outcome → queries
    queries: dict[str, int]  # split → queries
    rows: dict[str, int]  # split → rows


def build_datasheet(
    settings: dict[str, Any], counters: CurationCounters, examples: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the datasheet as a JSON object.

    Args:
        settings: the whole configuration, as a dictionary.
        counters: the counters of all steps.
        examples: rows with query, reasoning and item.
    """
    finder, teacher, curate = counters.finder, counters.teacher, settings["curate"]
    return {
        "retriever": curate["retriever"],
        "top_k": curate["top_k"],
        "difficulty": {
            "thresholds": {name: value for name, value in curate["difficulty"].items() if value is not None},
            "queries": finder["queries"],
            "hard": finder["hard"],
            "histograms": {name: finder[name] for name in ("recall", "margin", "overlap")},
        },
        "teacher": {"kind": curate["teacher"], "model": curate["llm"]["model"] if curate["teacher"] == "llm" else None},
        "phrases": {"written": teacher["phrases"]} | {k: n for k, n in teacher.items() if k.startswith("dropped: ")},
        "reasonings": {"compared": teacher["compared"], "helpful": teacher["helpful"]},
        "judge": _judge_section(curate, counters.judge),
        "outcomes": counters.outcomes,
        "split": {
            title: {"queries": counters.queries.get(split, 0), "rows": counters.rows.get(split, 0)}
            for split, title in SPLIT_TITLES.items()
            if counters.rows.get(split)
        },
        "near-duplicates": counters.near_duplicates,
        "seed": settings["seed"],
        "examples": examples,
    }


def _judge_section(curate: dict[str, Any], judged: Counters) -> dict[str, Any]:
    """Who judged, how many pairs, and how far the verdicts agree with the known grades."""
    if curate["judge"] == "known":
        return {"kind": "known"}
    yes_yes, yes_no, no_yes, no_no = judged["agreement"]
    verdicts = [True] * (yes_yes + yes_no) + [False] * (no_yes + no_no)
    known = [True] * yes_yes + [False] * yes_no + [True] * no_yes + [False] * no_no
    return {
        "kind": curate["judge"],
        "model": curate["judge_llm"]["model"] if curate["judge"] == "llm" else curate["cross_encoder"],
        "accept": curate["accept"],
        "pairs": judged["judged"],
        "without a readable answer": judged["unjudged"],
        "agreement with known grades": judge_agreement(verdicts, known),
    }


def sparkline(counts: list[int]) -> str:
    """Draw a histogram as one line of blocks, empty bins as spaces.

    >>> sparkline([0, 1, 8, 4])
    ' ▁█▄'
    """
    most = max(counts, default=0)
    return "".join(BLOCKS[-(-8 * n // most)] if n else " " for n in counts)


def render_markdown(sheet: dict[str, Any]) -> str:
    """Return the datasheet as a Markdown page."""
    lines = ["# Datasheet", "", f"Retriever {sheet['retriever']}, top {sheet['top_k']}; seed {sheet['seed']}.", ""]
    lines += _difficulty_lines(sheet["difficulty"])
    lines += ["", "## Teacher and rules", ""]
    lines += [f"- {key}: {value}" for key, value in (sheet["teacher"] | sheet["phrases"]).items() if value is not None]
    lines += ["", _helpfulness_line(sheet["reasonings"]), "", "## Judge", ""]
    lines += [f"- {key}: {value}" for key, value in sheet["judge"].items()]
    lines += ["", "## What became of the queries", "", "| outcome | queries |", "| --- | --- |"]
    lines += [f"| {name} | {n} |" for name, n in sorted(sheet["outcomes"].items(), key=lambda pair: -pair[1])]
    lines += ["", "## Split", "", "| part | queries | rows |", "| --- | --- | --- |"]
    lines += [f"| {name} | {part['queries']} | {part['rows']} |" for name, part in sheet["split"].items()]
    lines += ["", _near_duplicates_line(sheet["near-duplicates"])]
    lines += ["", "## Examples", "", "| query | reasoning | an item |", "| --- | --- | --- |"]
    cells = ("query", "reasoning", "item")
    lines += [f"| {' | '.join(str(row[c]).replace('|', '/') for c in cells)} |" for row in sheet["examples"]]
    return "\n".join(lines) + "\n"


def _difficulty_lines(difficulty: dict[str, Any]) -> list[str]:
    limits = [f"{name.replace('_', ' ')} {value}" for name, value in difficulty["thresholds"].items()]
    lines = ["## Difficulty", "", f"{difficulty['hard']} of {difficulty['queries']} queries are hard."]
    lines += [f"Hard is: {', or '.join(limits) or 'every query'}.", "", "| measure | 0 to 1 | counts | unknown |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, counts in difficulty["histograms"].items():
        numbers = " ".join(map(str, counts[:BINS]))
        lines.append(f"| {name} | `{sparkline(counts[:BINS])}` | {numbers} | {counts[BINS]} |")
    return lines


def _helpfulness_line(counts: Counters) -> str:
    return (
        f"With {counts['helpful']} of {counts['compared']} reasonings the retriever ranks the known relevant items "
        "higher than for the query alone."
    )


def _near_duplicates_line(counts: Counters) -> str:
    line = (
        f"{counts['near-duplicates']} queries are near-duplicates of another and went where it went; the largest "
        f"group has {counts['largest group']}."
    )
    if left_out := counts.get(NEAR_OTHERS):
        line += f" {left_out} more were {NEAR_OTHERS}."
    return line
