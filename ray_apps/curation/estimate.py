"""The work and the cost of a curation, estimated before it runs. Asks no model."""

from pathlib import Path

import pyarrow as pa

from lrem.config import Config, LlmConfig
from lrem.curation.cost_estimate import CHARACTERS_PER_TOKEN, LlmWorkload, estimate_cost
from lrem.curation.judge import max_own_judged
from lrem.curation.prompts import extraction_messages, judge_messages, reasoning_messages
from lrem.data.schema import read_items
from ray_apps.curation.inputs import train_queries
from ray_apps.curation.preflight import check_settings, resolve_settings
from ray_apps.curation.resumable import is_cut, list_parts, missing_parts, total_counters
from ray_apps.curation.run_folder import open_run


def estimate_curation(config: Config) -> str:
    """Return a few lines to print; upper bounds if an earlier run has not yet measured difficulty.

    Raises:
        DataError: an input cannot be used, or a setting lacks its model.
    """
    config = resolve_settings(config)
    check_settings(config)
    folder = open_run(config).folder
    items = read_items(config.path("items"))
    sizes = [(table.num_rows, _characters(table["query"])) for table in train_queries(config)]
    count = sum(rows for rows, _ in sizes)
    query = "q" * (sum(characters for _, characters in sizes) // count)  # of average length
    hard = _hard_queries(folder)
    lines = [f"{count} queries, {items.num_rows} items; retriever {config.curate.retriever}"]
    lines.append("hard: not known yet, so the estimate counts all" if hard is None else f"hard: {hard} of them")
    if config.curate.teacher == "llm":
        llm, queries = config.curate.llm, count if hard is None else hard
        reasoning = "t" * (CHARACTERS_PER_TOKEN * llm.max_tokens)  # of maximum length
        thinking = LlmWorkload(queries, reasoning_messages(query, None))
        extracting = LlmWorkload(queries, extraction_messages(query, reasoning))
        lines.append(_cost_line("teacher", llm, [thinking, extracting]))
    if config.curate.judge == "llm":
        title = "t" * (_characters(items["title"]) // items.num_rows)
        pairs = count * (config.curate.judged_per_query + max_own_judged(config.curate))
        judging = LlmWorkload(pairs, judge_messages(query, title))
        lines.append(_cost_line("judge", config.curate.judge_llm, [judging]))
    parts, done = -(-count // config.curate.part_rows), len(list_parts(folder / "decided"))
    lines.append(f"{parts} parts of {config.curate.part_rows} queries, {done} of them done")
    return "\n".join(lines)


def _characters(texts: pa.ChunkedArray) -> int:
    return sum(map(len, texts.to_pylist()))


def _hard_queries(folder: Path) -> int | None:
    """Return the number of hard queries if an earlier run has measured them all."""
    if not is_cut(folder / "input") or missing_parts(folder / "input", folder / "found"):
        return None
    return int(total_counters(folder / "found")["hard"])


def _cost_line(role: str, llm: LlmConfig, workloads: list[LlmWorkload]) -> str:
    cost = estimate_cost(workloads, llm)
    money = f", {cost.money:.2f} at the configured prices" if llm.price_in or llm.price_out else ""
    return (
        f"{role} {llm.model}: at most {cost.requests} requests, {cost.tokens_in:,} tokens in, {cost.tokens_out:,} out"
        f"{money}; {cost.seconds / 3600:.1f} h at {llm.tokens_a_second:g} tokens/s"
    )
