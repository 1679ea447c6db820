"""The files that curation writes: each row lists all items that are known to be relevant to its query."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lrem.config import load_config
from lrem.curation.curation_run import INPUT_SCHEMA, CurationRun
from lrem.curation.finder import Finder
from lrem.curation.judge import Judge
from lrem.curation.query_lookup import write_lookup
from lrem.curation.teacher import Teacher
from lrem.data.files import write_json, write_parquet
from lrem.data.schema import RELEVANT, RL_PAIRS, TRIPLETS
from lrem.retrieval.resolved_retriever import ResolvedRetriever
from ray_apps.curation.inputs import GROUPS
from ray_apps.curation.outputs import write_outputs

TITLES = {"i1": "steel helmet", "i2": "leather gloves", "i3": "paper bike poster", "i4": "bike bell", "i5": "tin soup"}
JUDGED = {"q1": ["i1", "i4"], "q2": ["i5"], "q3": ["i3"]}


def test_every_row_lists_the_judged_items(tmp_path: Path) -> None:
    """Only one row per query: the other judged items of q1 have none, and are known all the same."""
    write_parquet(pa.table({"item_id": [*TITLES], "title": [*TITLES.values()]}), tmp_path / "world/items.parquet")
    settings = [f"run_dir={tmp_path}", "curate.top_k=2", "curate.items_per_query=1", "curate.test_share=0"]
    config = load_config(None, [*settings, "curate.rl_share=0.5", "curate.dev_share=0.2"])
    run = CurationRun(config, tmp_path / "work/run", ResolvedRetriever("bm25", None, None, "bm25"))
    judgements = [(query, item, 1) for query, items in JUDGED.items() for item in items]
    write_lookup([*judgements, ("q1", "i2", 0)], run.judgements_file, "qrels")
    write_lookup([("q1", "helmet", None)], run.reasonings_file, "teacher")
    rows = [
        ("q1", "ride a bike", 0.6),
        ("q2", "tin soup", 0.1),
        ("q3", "bike poster", 0.9),
    ]  # into three splits
    queries = [{"query_id": q, "query": text, "draw": draw, "alone": True} for q, text, draw in rows]
    table = pa.Table.from_pylist(queries, INPUT_SCHEMA)
    for name, step in (("found", Finder), ("taught", Teacher), ("decided", Judge)):
        table, counters = step(run)(table)
        write_parquet(table, run.folder / name / "000000.parquet")
        write_json(counters, run.folder / name / "000000.json")
    write_json({"near-duplicates": 0, "largest group": 1}, run.folder / GROUPS)
    write_outputs(run)
    files = {"triplets": ("q1", TRIPLETS), "rl_pairs": ("q2", RL_PAIRS), "dev": ("q3", TRIPLETS)}
    for name, (query, columns) in files.items():
        written = pq.read_table(config.path(name))
        assert written.schema == pa.schema([*columns, *RELEVANT])
        assert [(row["query_id"], row["relevant_ids"]) for row in written.to_pylist()] == [(query, JUDGED[query])]
    page = config.path("triplets").with_name("datasheet.md").read_text()
    assert "With 1 of 1 reasonings the retriever ranks the known relevant items higher" in page
