"""A shop small enough to follow by hand, curated with a scripted teacher and judge."""

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from lrem.config import Config, load_config
from lrem.data.files import write_parquet
from ray_apps.curation.resumable import read_parts
from ray_apps.curation.run_folder import open_run
from tests.chat_server import Call

TITLES = {
    **{"i1": "steel helmet", "i2": "leather gloves", "i3": "paper bike poster", "i4": "bike bell", "i5": "safety vest"},
    **{"i6": "tin soup", "i7": "wool hat", "i8": "rubber boots", "i9": "black umbrella"},
}
QUERIES = {
    **{"q1": "ride a bike", "q2": "storm outside", "q3": "tin soup", "q4": "cold ears", "q5": "black umbrella"},
    **{"q6": "storm   outside ", "q7": "something nice"},
}
KEYWORDS = {  # answers to the teacher's second question
    "ride a bike": "Keywords: helmet, gloves, bike",
    "storm outside": "1. rubber boots\n2. umbrella\n3. hat",
    "cold ears": "<think>ears…</think>hat",
    "something nice": "I'm sorry, I can't help with that.",
}
GRADES = {  # answers of the judge
    ("ride a bike", "steel helmet"): "3",
    ("ride a bike", "leather gloves"): "Grade: 1",
    ("storm outside", "rubber boots"): "2",
    ("storm outside", "black umbrella"): "who knows",
    ("storm outside", "wool hat"): "3",
    ("tin soup", "tin soup"): "3",
    ("cold ears", "wool hat"): "2",
    ("black umbrella", "black umbrella"): "**3**",
}
KNOWN_GRADES = {
    **{("q1", "i1"): 1, ("q1", "i2"): 1, ("q1", "i4"): 0, ("q2", "i8"): 2, ("q2", "i9"): 1, ("q2", "i7"): 0},
    **{("q3", "i6"): 1, ("q4", "i7"): 1, ("q5", "i9"): 3, ("q6", "i8"): 1, ("q7", "i5"): 1},
}
ALL_CALLS: set[Call] = {
    *((kind, query, "") for query in KEYWORDS for kind in ("think", "keywords")),
    *(("judge", query, title) for query, title in GRADES),
}
UNREADABLE: set[Call] = {("keywords", "something nice", ""), ("judge", "storm outside", "black umbrella")}


class LlmRun(NamedTuple):
    """A finished run with a scripted teacher and judge, both of which answered everything."""

    config: Config
    counters: dict[str, Any]
    calls: Counter[Call]


def small_shop(folder: Path, **settings: Any) -> Config:
    """Write the shop into a folder and return its configuration, with these settings of `curate`.

    There is no test share, and only items of the difference set are judged.
    """
    tables = {
        "items": {"item_id": list(TITLES), "title": list(TITLES.values())},
        "queries": {"query_id": list(QUERIES), "query": list(QUERIES.values())},
        "qrels": {
            "query_id": [query for query, _ in KNOWN_GRADES],
            "item_id": [item for _, item in KNOWN_GRADES],
            "grade": list(KNOWN_GRADES.values()),
        },
    }
    for name, table in tables.items():
        write_parquet(pa.table(table), folder / f"world/{name}.parquet")
    config = load_config(None, [f"run_dir={folder}", "curate.top_k=4", "curate.rl_share=0.5", "ray.num_cpus=4"])
    return with_settings(config, **{"part_rows": 3, "test_share": 0.0, "own_share": 0.0} | settings)


def with_settings(config: Config, **settings: Any) -> Config:
    """Replace settings of `curate`."""
    return config.model_copy(update={"curate": config.curate.model_copy(update=settings)})


def with_llms(config: Config, url: str, judge_url: str | None = None) -> Config:
    """Use a teacher and a judge at a URL, or the judge at another one."""
    llm = {"engine": "url", "model": "m", "concurrency": 3, "retries": 0, "timeout_s": 30.0}
    teacher = config.curate.llm.model_copy(update=llm | {"url": url})
    judge = config.curate.judge_llm.model_copy(update=llm | {"url": judge_url or url})
    return with_settings(config, teacher="llm", llm=teacher, judge="llm", judge_llm=judge)


def decided_rows(config: Config) -> dict[str, dict[str, Any]]:
    """Return query id → its row after the judge."""
    tables = read_parts(open_run(config).folder / "decided")
    return {row["query_id"]: row for table in tables for row in table.to_pylist()}


def results(config: Config) -> dict[str, tuple[str, str, list[str]]]:
    """Return query id → outcome, reasoning, and accepted items."""
    rows = decided_rows(config)
    return {query: (row["outcome"], row["reasoning"], sorted(row["items"])) for query, row in rows.items()}


def datasheet(config: Config) -> dict[str, Any]:
    return dict(json.loads(config.path("triplets").with_name("datasheet.json").read_text()))


def dead_letters(config: Config) -> list[dict[str, str]]:
    file = config.path("triplets").with_name("dead_letters.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def output_files(config: Config) -> dict[str, bytes]:
    """Return the content of every file that a run has written."""
    folder = config.path("triplets").parent
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def answer_count(config: Config) -> int:
    with sqlite3.connect(config.path("triplets").parent / "work" / "answers.sqlite") as answers:
        return int(answers.execute("SELECT count(*) FROM answers").fetchone()[0])
