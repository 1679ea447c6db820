"""Curation with a teacher and a judge over HTTP: results, dead letters, and what the next run asks again."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lrem.curation.split_assignment import TEACHER_FAILED
from lrem.errors import DataError
from ray_apps.curation import curate
from tests.chat_server import Chat, serve
from tests.ray.curation.small_shop import (
    ALL_CALLS,
    GRADES,
    KEYWORDS,
    QUERIES,
    UNREADABLE,
    LlmRun,
    answer_count,
    datasheet,
    dead_letters,
    decided_rows,
    output_files,
    results,
    small_shop,
    with_llms,
    with_settings,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_teacher_and_a_judge_over_http(llm_run: LlmRun) -> None:
    config, counters, calls = llm_run
    assert calls == dict.fromkeys(ALL_CALLS, 1)  # q6 is q2 with other spaces: one question for both
    assert results(config) == {
        "q1": ("kept", "helmet, gloves", ["i1"]),
        "q2": ("kept", "rubber boots, umbrella, hat", ["i7", "i8"]),
        "q3": ("kept without reasoning", "", ["i6"]),
        "q4": ("kept", "hat", ["i7"]),
        "q5": ("kept without reasoning", "", ["i9"]),
        "q6": ("kept", "rubber boots, umbrella, hat", ["i7", "i8"]),
        "q7": ("the teacher failed", "", []),
    }
    assert counters["queries"] == len(QUERIES)
    written = [row for name in ("triplets", "rl_pairs") for row in pq.read_table(config.path(name)).to_pylist()]
    expected = [(query, item) for query, (_, _, items) in results(config).items() for item in items]
    assert sorted((row["query_id"], row["item_id"]) for row in written) == sorted(expected)
    assert len(expected) == counters["triplets"] + counters["rl_pairs"]


def test_the_datasheet_reports_the_judges_agreement(llm_run: LlmRun) -> None:
    sheet = datasheet(llm_run.config)
    assert sheet["judge"] == {
        **{"kind": "llm", "model": "m", "accept": 0.5, "pairs": 9, "without a readable answer": 2},
        # Pairs with a known grade: both accept q1-i1 q2-i8 q6-i8 q3-i6 q4-i7 q5-i9; only the judge q2-i7; only the
        # known grade q1-i2. By chance 7/8 × 7/8 + 1/8 × 1/8 = 0.78125; (0.75 − 0.78125) / (1 − 0.78125) = −0.1429
        "agreement with known grades": {
            **{"pairs": 8, "accepted": 7, "relevant": 7, "accuracy": 0.75},
            **{"precision": 0.8571, "recall": 0.8571, "kappa": -0.1429},
        },
    }
    assert sheet["near-duplicates"] == {"near-duplicates": 1, "largest group": 2}
    assert sheet["phrases"] == {"written": 10, "dropped: of the query": 1}  # "bike"
    assert sheet["outcomes"] == {"kept": 4, "kept without reasoning": 2, "the teacher failed": 1}


def test_dead_letters_are_the_queries_without_a_usable_answer(llm_run: LlmRun) -> None:
    letters = dead_letters(llm_run.config)
    reasons = {(row["step"], row["query_id"], row.get("item_id")): row["reason"] for row in letters}
    assert set(reasons) == {("teacher, keywords", "q7", None), ("judge", "q2", "i9"), ("judge", "q6", "i9")}
    assert "no keyword phrase in the answer" in reasons["teacher, keywords", "q7", None]
    assert "no grade from 0 to 3" in reasons["judge", "q2", "i9"]


def test_the_next_run_asks_for_unreadable_answers_again(llm_run: LlmRun) -> None:
    config, counters, _ = llm_run
    before = output_files(config)
    assert answer_count(config) == len(ALL_CALLS - UNREADABLE)
    chat = Chat(KEYWORDS, GRADES)
    with serve(chat) as url:  # the same model at another address answers the same questions
        assert curate.run(with_llms(config, url)) == counters
    assert chat.calls == dict.fromkeys(UNREADABLE, 1)
    assert answer_count(config) == len(ALL_CALLS - UNREADABLE)
    assert output_files(config) == before


@pytest.mark.slow
def test_only_failed_questions_are_asked_again(llm_run: LlmRun, tmp_path: Path) -> None:
    """First some of the teacher's requests fail and the judge is down; then some of the judge's fail; then none."""
    chat = Chat(KEYWORDS, GRADES)
    thinking, keywords_of_q2 = ("think", "ride a bike", ""), ("keywords", "storm outside", "")
    grade = ("judge", "tin soup", "tin soup")
    with serve(chat) as url:
        config = with_llms(small_shop(tmp_path), url)
        chat.refused = {thinking, keywords_of_q2, grade}
        with pytest.raises(ConnectionError, match="http://127.0.0.1:9/v1"):
            curate.run(with_llms(config, url, judge_url="http://127.0.0.1:9/v1"))
        chat.refused = {keywords_of_q2, grade}
        curate.run(config)
        letters = {(row["step"], row["query_id"]): row["reason"] for row in dead_letters(config)}
        assert letters == {
            ("teacher, keywords", "q2"): "400: not keywords today",
            ("teacher, keywords", "q6"): "400: not keywords today",
            ("teacher, keywords", "q7"): letters["teacher, keywords", "q7"],
            ("judge", "q3"): "400: not judge today",
        }
        rows = decided_rows(config)
        assert {query for query, row in rows.items() if row["outcome"] == TEACHER_FAILED} == {"q2", "q6", "q7"}
        assert (rows["q3"]["outcome"], rows["q3"]["items"]) == ("the judge failed", [])
        chat.refused = set()
        counters = curate.run(config)
    repeated = {thinking: 2, keywords_of_q2: 3, grade: 2, ("keywords", "something nice", ""): 3}
    assert chat.calls == dict.fromkeys(ALL_CALLS, 1) | repeated
    assert counters == llm_run.counters
    assert decided_rows(config) == decided_rows(llm_run.config)
    assert output_files(config) == output_files(llm_run.config)


@pytest.mark.slow
def test_a_log_without_judgements_needs_none(tmp_path: Path) -> None:
    chat = Chat(KEYWORDS, GRADES)
    with serve(chat) as url:
        config = with_llms(small_shop(tmp_path), url)
        config.path("qrels").unlink()
        config = with_settings(config, difficulty=config.curate.difficulty.model_copy(update={"overlap_below": 0.5}))
        curate.run(config)
    rows = decided_rows(config)
    # by overlap with the retrieved titles: "storm outside" retrieves none; "ride a bike" shares one word of two
    assert {query for query, row in rows.items() if row["hard"]} == {"q2", "q4", "q6", "q7"}
    assert sorted(rows["q2"]["items"]) == ["i7", "i8"]
    agreement = datasheet(config)["judge"]["agreement with known grades"]
    assert agreement == {"pairs": 0, "accepted": 0, "relevant": 0}
    with pytest.raises(DataError, match="qrels.parquet does not exist"):
        curate.run(with_settings(config, judge="known"))
