"""The three steps of curation on a shop that can be checked by hand: BM25, a file of reasonings, known judgements."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lrem.config import load_config
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import judge_request
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
    write_lookup(JUDGEMENTS, run.judgements_file, "qrels")
    write_lookup(((query_id, text, None) for query_id, text in REASONINGS.items()), run.reasonings_file, "teacher")
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
    assert teacher_counters == {"phrases": 4, "dropped: of the query": 1, "failed": 0, "compared": 2, "helpful": 1}
    judged, judge_counters = Judge(run)(taught)
    assert judged.schema == VERDICT_SCHEMA
    outcomes = {row["query_id"]: (row["outcome"], row["reasoning"], row["items"]) for row in judged.to_pylist()}
    assert outcomes == {
        # i2 is new too, but judged irrelevant; i4 is what the query itself finds
        "q1": ("kept", "helmet, gloves", ["i1", "i4"]),
        "q2": ("nothing relevant", "helmet", []),
        "q3": ("kept without reasoning", "", ["i5"]),
        "q4": ("kept without a teacher", "", ["i2"]),  # judged, but without a reasoning in the file
    }
    relevant = dict(zip(judged["query_id"].to_pylist(), judged["relevant"].to_pylist(), strict=True))
    assert relevant == {"q1": ["i1", "i4"], "q2": ["i5"], "q3": ["i5"], "q4": ["i2"]}
    assert judge_counters == {
        **{"agreement": [0, 0, 0, 0], "judged": 0, "unjudged": 0},
        **{f"outcome {outcome}": 1 for outcome, _, _ in outcomes.values()},
    }


def with_settings(run: CurationRun, **settings: Any) -> CurationRun:
    curate = run.config.curate.model_copy(update=settings)
    return run._replace(config=run.config.model_copy(update={"curate": curate}))


def judged_rows(run: CurationRun) -> dict[str, dict[str, Any]]:
    """Return query id → its row after the three steps."""
    judged, _ = Judge(run)(Teacher(run)(Finder(run)(queries_table())[0])[0])
    return {row["query_id"]: row for row in judged.to_pylist()}


def test_without_a_share_of_its_own_items_a_query_has_only_new_ones(run: CurationRun) -> None:
    rows = judged_rows(with_settings(run, own_share=0.0))
    assert rows["q1"]["items"] == ["i1"]
    assert rows["q1"]["relevant"] == ["i1", "i4"]  # known all the same


def test_reasonings_that_do_not_help_are_emptied(run: CurationRun) -> None:
    """q2's "helmet" finds no soup: the query is kept with an empty reasoning, and its judged item."""
    rows = judged_rows(with_settings(run, only_helpful=True))
    assert (rows["q1"]["outcome"], rows["q1"]["reasoning"]) == ("kept", "helmet, gloves")
    assert [rows["q2"][name] for name in ("outcome", "reasoning", "items")] == [
        *("kept, the words do not help", "", ["i5"]),
    ]
    dropped = judged_rows(with_settings(run, only_helpful=True, keep_easy=False))
    assert (dropped["q2"]["outcome"], dropped["q2"]["items"]) == ("no reasoning", [])


def test_every_judged_item_can_be_a_positive(run: CurationRun) -> None:
    """q2's words find nothing relevant, and q3's only item is what the query itself finds: both are kept."""
    rows = judged_rows(with_settings(run, positives="judged"))
    assert {query_id: (row["outcome"], row["reasoning"], sorted(row["items"])) for query_id, row in rows.items()} == {
        "q1": ("kept", "helmet, gloves", ["i1", "i4"]),
        "q2": ("kept", "helmet", ["i5"]),
        "q3": ("kept without reasoning", "", ["i5"]),
        "q4": ("kept without a teacher", "", ["i2"]),
    }
    fewer = judged_rows(with_settings(run, positives="judged", keep_easy=False, keep_untaught=False, items_per_query=1))
    assert [fewer[query_id]["outcome"] for query_id in ("q3", "q4")] == ["no reasoning", "no teacher"]
    assert len(fewer["q1"]["items"]) == 1


def test_a_model_judges_the_querys_own_items_too(run: CurationRun) -> None:
    """Of q1: i1 and i2 are new, i4 and i3 its own. The judge accepts i2 and i4; i1 is relevant by its known grade."""
    run = with_settings(run, judge="llm", judged_per_query=2)
    grades = {"i1": "0", "i2": "3", "i4": "2"}  # one of the query's own: half of judged_per_query
    with AnswerStore(run.answers_file) as answers:
        for item, grade in grades.items():
            answers.put([(judge_request(run.config.curate, "ride a bike", TITLES[item]).key, grade)])
    taught = Teacher(run)(Finder(run)(queries_table())[0])[0]
    row = taught.to_pylist()[0]
    assert (sorted(row["candidates"]), row["own"]) == (["i1", "i2"], ["i4", "i3"])
    judged, counts = Judge(run)(taught)
    q1 = judged.to_pylist()[0]
    assert (q1["outcome"], q1["items"], q1["relevant"]) == ("kept", ["i2", "i4"], ["i1", "i2", "i4"])
    assert counts["judged"] == 3


def test_half_of_the_items_are_the_querys_own_on_average(run: CurationRun) -> None:
    judge = Judge(run)
    items = {"candidates": [f"new{i}" for i in range(9)], "own": [f"own{i}" for i in range(9)]}
    accepted = {*items["candidates"], *items["own"]} - {"new0", "own0"}
    for count, share, least, most in ((4, 0.5, 2, 2), (3, 0.5, 1, 2), (1, 0.5, 0, 1), (4, 0.0, 0, 0), (5, 0.9, 4, 5)):
        judge.settings = judge.settings.model_copy(update={"items_per_query": count, "own_share": share})
        samples = [judge._sample({"query_id": f"q{i}", **items}, accepted) for i in range(400)]
        own = [sum(item.startswith("own") for item in sample) for sample in samples]
        assert all(len(set(sample)) == count and accepted.issuperset(sample) for sample in samples)
        assert (min(own), max(own)) == (least, most)
        assert sum(own) / 400 == pytest.approx(count * share, abs=0.1)


def test_the_most_decisive_keyword_is_first_and_survives_the_budget(run: CurationRun) -> None:
    """Relevant for q1 are i1 and i4: "helmet" is only there, "paper" only elsewhere, "wheel" nowhere."""
    reasonings = [("q1", "paper, wheel, helmet", None), ("q2", "paper, soup tin, wheel", None)]
    write_lookup(reasonings, run.reasonings_file, "teacher")
    model = run.config.model.model_copy(update={"budget": 3})
    tight = run._replace(config=run.config.model_copy(update={"model": model}))

    def reasonings_of(run: CurationRun) -> list[str]:
        return Teacher(run)(Finder(run)(queries_table())[0])[0]["reasoning"].to_pylist()[:2]

    assert reasonings_of(run) == ["helmet, wheel, paper", "soup tin, wheel, paper"]
    assert reasonings_of(tight) == ["helmet, wheel", "soup tin"]
    assert reasonings_of(with_settings(tight, order_keywords=False)) == ["paper, wheel", "paper"]
