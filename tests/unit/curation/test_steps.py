"""The three steps of curation on a shop that can be checked by hand: BM25, a file of reasonings, known judgements."""

from pathlib import Path

import pyarrow as pa
import pytest

from lrem.config import load_config
from lrem.curation.curation_run import DIFFICULTY_SCHEMA, INPUT_SCHEMA, REASONING_SCHEMA, VERDICT_SCHEMA, CurationRun
from lrem.curation.finder import Finder
from lrem.curation.judge import Judge
from lrem.curation.query_lookup import write_lookup
from lrem.curation.teacher import Teacher
from lrem.data.files import write_parquet
from lrem.retrieval.resolved_retriever import ResolvedRetriever

TITLES = {"i1": "steel helmet", "i2": "leather gloves", "i3": "paper bike poster", "i4": "bike bell", "i5": "tin soup"}
QUERIES = {"q1": "ride a bike", "q2": "warm meal", "q3": "tin soup", "q4": "cold hands"}
REASONINGS = {"q1": "helmet, gloves, ride", "q2": "helmet"}
JUDGEMENTS = [("q1", "i1", 1), ("q1", "i2", 0), ("q1", "i4", 1), ("q2", "i5", 1), ("q3", "i5", 1), ("q4", "i2", 1)]


@pytest.fixture
def run(tmp_path: Path) -> CurationRun:
    items = {"item_id": list(TITLES), "title": list(TITLES.values())}
    write_parquet(pa.table(items), tmp_path / "world/items.parquet")
    run = CurationRun(
        load_config(None, [f"run_dir={tmp_path}", "curate.top_k=4"]),
        tmp_path / "work" / "run",
        ResolvedRetriever("bm25", None, None, "bm25"),
    )
    write_lookup(JUDGEMENTS, run.judgements_file)
    write_lookup(((query_id, text, None) for query_id, text in REASONINGS.items()), run.reasonings_file)
    return run


def queries_table() -> pa.Table:
    rows = [
        {"query_id": query_id, "query": query, "category": None, "draw": 0.5, "alone": True}
        for query_id, query in QUERIES.items()
    ]
    return pa.Table.from_pylist(rows, INPUT_SCHEMA)


def test_three_steps_by_hand(run: CurationRun) -> None:
    found, finder_counters = Finder(run)(queries_table())
    assert found.schema == DIFFICULTY_SCHEMA
    assert dict(zip(found["query_id"].to_pylist(), found["recall"].to_pylist(), strict=True)) == {
        **{"q1": 0.5, "q2": 0.0, "q3": 1.0, "q4": 0.0},
    }
    assert finder_counters["hard"] == 3
    taught, teacher_counters = Teacher(run)(found)
    assert taught.schema == REASONING_SCHEMA
    assert teacher_counters == {"phrases": 4, "dropped: of the query": 1, "failed": 0}
    judged, judge_counters = Judge(run)(taught)
    assert judged.schema == VERDICT_SCHEMA
    outcomes = {row["query_id"]: (row["outcome"], row["reasoning"], row["items"]) for row in judged.to_pylist()}
    assert outcomes == {
        "q1": ("kept", "helmet, gloves", ["i1"]),  # i2 is new too, but judged irrelevant
        "q2": ("nothing relevant", "helmet", []),
        "q3": ("kept without reasoning", "", ["i5"]),
        "q4": ("kept without a teacher", "", ["i2"]),  # judged, but without a reasoning in the file
    }
    assert judge_counters == {
        **{"agreement": [0, 0, 0, 0], "judged": 0, "unjudged": 0},
        **{f"outcome {outcome}": 1 for outcome, _, _ in outcomes.values()},
    }
