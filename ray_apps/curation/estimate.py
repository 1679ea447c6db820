"""What a curation would do and cost, before it is begun: rows, questions, tokens, time. Reckons; asks nobody."""

import json
from pathlib import Path

from lrem.config import Config, LlmConfig
from lrem.curation.cost_estimate import LlmWorkload, estimate_cost
from lrem.curation.prompts import extraction_messages, judge_messages, reasoning_messages
from lrem.data.schema import read_items
from ray_apps.curation import resumable
from ray_apps.curation.curate import check, curation_run, resolved
from ray_apps.curation.inputs import queries


def plan(config: Config) -> str:
    """Some lines to print; an upper bound where difficulty is not known yet.

    Raises:
        DataError: an input cannot be used, or a setting lacks its model.
    """
    config = resolved(config)
    check(config)
    folder = curation_run(config).folder
    items = read_items(config.path("items"))
    sizes = [(table.num_rows, sum(map(len, table["query"].to_pylist()))) for table in queries(config)]
    count, characters = sum(n for n, _ in sizes), sum(n for _, n in sizes)
    hard = _known_hard(folder)
    lines = [f"{count} queries, {items.num_rows} items; retriever {config.curate.retriever}"]
    lines.append(f"hard: {hard} of them" if hard is not None else "hard: not known yet, so reckoned as all of them")
    asked, query = count if hard is None else hard, "q" * (characters // count)
    if config.curate.teacher == "llm":
        llm = config.curate.llm
        thought = "t" * (4 * llm.max_tokens)
        messages = [reasoning_messages(query, None), extraction_messages(query, thought)]
        calls = [LlmWorkload(asked, request) for request in messages]
        lines.append(_told("teacher", llm, calls))
    if config.curate.judge == "llm":
        title = "t" * (sum(map(len, items["title"].to_pylist())) // items.num_rows)
        pairs = count * config.curate.judged_per_query
        lines.append(_told("judge", config.curate.judge_llm, [LlmWorkload(pairs, judge_messages(query, title))]))
    parts = -(-count // config.curate.part_rows)
    done = len(resumable.parts_of(folder / "decided"))
    lines.append(f"{parts} parts of {config.curate.part_rows} queries, {done} of them done")
    return "\n".join(lines)


def _known_hard(folder: Path) -> int | None:
    """How many queries are hard, if an earlier run has found that out."""
    cut = folder / "input" / "cut.json"
    if not cut.exists() or len(resumable.parts_of(folder / "found")) < json.loads(cut.read_text())["parts"]:
        return None
    return int(resumable.total(folder / "found")["hard"])


def _told(who: str, llm: LlmConfig, calls: list[LlmWorkload]) -> str:
    found = estimate_cost(calls, llm)
    money = f", {found.money:.2f} at the prices set" if llm.price_in or llm.price_out else ""
    return (
        f"{who} {llm.model}: at most {found.requests} questions, {found.tokens_in:,} tokens in, "
        f"{found.tokens_out:,} out{money}; {found.seconds / 3600:.1f} h at {llm.tokens_a_second:g} tokens/s"
    )
