"""TREC files: round trips, the order of trec_eval, and every kind of invalid line."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import ir_measures
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lrem.errors import DataError
from lrem.evaluation.trec import read_qrels, read_run, write_qrels, write_run

IDS = st.text(min_size=1, max_size=8).filter(lambda text: text.split() == [text])
SCORES = st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda score: abs(score) < 1e38)
HITS = st.lists(st.tuples(IDS, SCORES | st.sampled_from([0.0, 0.5])), min_size=1, max_size=12, unique_by=lambda h: h[0])
RUNS = st.dictionaries(IDS, HITS, max_size=4)
QRELS = st.dictionaries(IDS, st.dictionaries(IDS, st.integers(-2, 9), min_size=1, max_size=6), max_size=4)


def ids(run: dict[str, list[tuple[str, float]]]) -> dict[str, list[str]]:
    return {query_id: [item_id for item_id, _ in hits] for query_id, hits in run.items()}


@given(RUNS)
@example({"q": [("a", 0.0), ("b", 0.0), ("c", 0.0), ("d", -1e-42)]})
@example({"q": [("a", -3.0), ("b", 5.0)]})
def test_a_run_keeps_its_order_in_a_round_trip(run: dict[str, list[tuple[str, float]]]) -> None:
    """Also if its scores are equal or increase; a run that was read is written again byte for byte."""
    with TemporaryDirectory() as folder:
        first = write_run(run, Path(folder) / "first.txt", "tag")
        read = read_run(first)
        second = write_run(read, Path(folder) / "second.txt", "tag")
        assert ids(read) == ids(run)
        assert second.read_bytes() == first.read_bytes()
    for hits in read.values():
        scores = np.array([score for _, score in hits], np.float32)
        assert np.all(np.diff(scores) < 0)


@given(QRELS)
def test_qrels_survive_a_round_trip(qrels: dict[str, dict[str, int]]) -> None:
    with TemporaryDirectory() as folder:
        assert read_qrels(write_qrels(qrels, Path(folder) / "qrels.txt")) == qrels


def test_the_formats(tmp_path: Path) -> None:
    run = {"q1": [("b", 12.25), ("a", 12.25), ("c", 0.1)], "q2": [("a", -1.0)], "q3": []}
    assert write_run(run, tmp_path / "new" / "run.txt", "lrem").read_text() == (
        "q1 Q0 b 1 12.25 lrem\nq1 Q0 a 2 12.249999046325684 lrem\nq1 Q0 c 3 0.1 lrem\nq2 Q0 a 1 -1.0 lrem\n"
    )
    qrels = {"q1": {"a": 0, "b": 3}, "q2": {}}
    assert write_qrels(qrels, tmp_path / "qrels.txt").read_text() == "q1 0 a 0\nq1 0 b 3\n"


def test_decreasing_scores_are_written_unchanged(tmp_path: Path) -> None:
    draw = random.Random(3)
    run = {"q": [(str(place), score) for place, score in enumerate(sorted(draw.random() for _ in range(99))[::-1])]}
    assert read_run(write_run(run, tmp_path / "run.txt", "tag")) == run


def test_scores_that_differ_only_as_doubles(tmp_path: Path) -> None:
    """trec_eval reads float32, in which 1 and 1 - 1e-12 would be a tie that the id breaks."""
    run = {"q": [("a", 1.0), ("b", 1.0 - 1e-12), ("c", 1.0 - 2e-12)]}
    write_run(run, tmp_path / "run.txt", "tag")
    scored = list(ir_measures.read_trec_run(str(tmp_path / "run.txt")))
    assert [row.doc_id for row in scored] == ["a", "b", "c"]
    for place, item_id in enumerate("abc", 1):
        [metric] = ir_measures.iter_calc([ir_measures.RR], {"q": {item_id: 1}}, scored)
        assert metric.value == pytest.approx(1 / place)


def test_an_external_run_is_sorted_by_score_then_rank(tmp_path: Path) -> None:
    path = tmp_path / "run.txt"
    path.write_text("q\tQ0\tlow\t1\t0.5\tx\r\nq Q0 second 7 2 x\n\np Q0 a 0 1e-3 x\nq Q0 first 3 2.0 x\n")
    assert read_run(path) == {"q": [("first", 2.0), ("second", 2.0), ("low", 0.5)], "p": [("a", 0.001)]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 a 1 0.5", "run.txt:2 has 5 columns, not 6: write 'query_id Q0 item_id rank score tag'"),
        ("q Q0 red coat 1 0.5 x", "run.txt:2 has 7 columns"),
        ("q Q0 a first 0.5 x", "run.txt:2: rank 'first' is not an integer"),
        ("q Q0 a 1 high x", "run.txt:2: score 'high' is not a number"),
        ("q Q0 a 1 nan x", "run.txt:2: score 'nan' is not finite"),
        ("q Q0 b 2 0.5 x", "run.txt:2: item 'b' appears twice for query 'q'"),
    ],
)
def test_an_invalid_line_of_a_run(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "run.txt"
    path.write_text(f"q Q0 b 1 0.9 x\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_run(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q 0 a", "qrels.txt:2 has 3 columns, not 4: write 'query_id 0 item_id grade'"),
        ("q 0 a 0.5", "qrels.txt:2: grade '0.5' is not an integer"),
        ("q 0 b 0", "qrels.txt:2: item 'b' appears twice for query 'q'"),
    ],
)
def test_an_invalid_line_of_qrels(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "qrels.txt"
    path.write_text(f"q 0 b 1\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_qrels(path)


def test_a_byte_order_mark_belongs_to_no_query(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("q 0 b 1\n", encoding="utf-8-sig")
    (tmp_path / "run.txt").write_text("q Q0 b 1 0.5 tag\n", encoding="utf-8-sig")
    assert read_qrels(tmp_path / "qrels.txt") == {"q": {"b": 1}}
    assert read_run(tmp_path / "run.txt") == {"q": [("b", 0.5)]}


def test_a_missing_file_and_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run.txt does not exist"):
        read_run(tmp_path / "run.txt")
    (tmp_path / "run.gz").write_bytes(b"\x1f\x8b\x08\x00\xff\xff")
    with pytest.raises(DataError, match="run.gz is not UTF-8"):
        read_run(tmp_path / "run.gz")


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"q": [("red coat", 1.0)]}, "item_id 'red coat' is empty or contains whitespace.* replace it"),
        ({"q 1": [("a", 1.0)]}, "query_id 'q 1' is empty or contains whitespace"),
        ({"q": [("", 1.0)]}, "item_id '' is empty"),
        ({"q": [("a", 1.0), ("a", 0.5)]}, "item 'a' appears twice for query 'q'"),
        ({"q": [("a", float("nan"))]}, "query 'q' has the score nan"),
        ({"q": [("a", 1e39)]}, "query 'q' has the score 1e.39, which is not a finite float32"),
    ],
)
def test_an_invalid_run_keeps_the_previous_file(
    tmp_path: Path, run: dict[str, list[tuple[str, float]]], message: str
) -> None:
    path = tmp_path / "run.txt"
    path.write_text("old")
    with pytest.raises(DataError, match=message):
        write_run({"fine": [("a", 1.0)], **run}, path, "tag")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["run.txt"]


def test_names_with_whitespace_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tag 'my run' is empty or contains whitespace"):
        write_run({}, tmp_path / "run.txt", "my run")
    with pytest.raises(DataError, match="item_id 'a\tb' is empty or contains whitespace"):
        write_qrels({"q": {"a\tb": 1}}, tmp_path / "qrels.txt")
