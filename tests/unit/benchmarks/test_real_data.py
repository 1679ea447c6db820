"""The data of the experiment on real shops, on a shop that can be checked by hand."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import real_data
from benchmarks.real_data import load_test, write_training_data
from lrem.data.files import write_parquet

TITLES = {"i1": "oak door", "i2": "pine door", "i3": "garden hose", "i4": "brass tap", "i5": "copper tap"}
QUERIES = {"q1": ("oak door", "dev"), "q2": ("watering dor", "dev"), "q3": ("brass tap", "train"), "q4": ("tap", "dev")}
GRADES = [("q1", "i1", 2), ("q2", "i3", 1), ("q3", "i4", 2), ("q1", "i2", 0), ("q4", "i5", 0)]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(real_data, "OTHERS", 1)
    tables = {
        "items": {"item_id": list(TITLES), "title": list(TITLES.values())},
        "queries": {
            "query_id": list(QUERIES),
            "query": [text for text, _ in QUERIES.values()],
            "split": [split for _, split in QUERIES.values()],
        },
        "qrels": dict(zip(("query_id", "item_id", "grade"), map(list, zip(*GRADES, strict=True)), strict=True)),
        "gold": {"query_id": ["q2"], "reasoning": ["garden hose"]},
        "teacher": {"query_id": ["q3"], "reasoning": ["tap"]},
    }
    for name, columns in tables.items():
        write_parquet(pa.table(columns), tmp_path / f"shop/{name}.parquet")
    return tmp_path / "shop"


def test_a_split_with_its_judged_items_and_others(shop: Path) -> None:
    test = load_test(shop, "dev")
    assert test.queries == {"q1": "oak door", "q2": "watering dor"}  # q4 has nothing relevant
    assert test.qrels == {"q1": {"i1": 2, "i2": 0}, "q2": {"i3": 1}}
    assert {"i1", "i2", "i3"} < {*test.item_ids}
    assert len(test.item_ids) == 4
    assert test.oracle == {"q2": "garden hose"}
    assert test.slices == {
        **{"all": ["q1", "q2"], "easy": ["q1"], "hard": ["q2"], "overlap 1": ["q1"], "overlap below 1": ["q2"]},
        "misspelled": ["q2"],
    }


def test_a_word_of_any_title_of_the_shop_is_spelled_right(shop: Path) -> None:
    """Whichever taps are drawn into the catalogue to score on, "brass" and "copper" are words of the shop."""
    queries = {"query_id": ["q1", "q2"], "query": ["brass door", "copper hose"], "split": ["dev", "dev"]}
    write_parquet(pa.table(queries), shop / "queries.parquet")
    assert "misspelled" not in load_test(shop, "dev").slices


def test_a_dev_query_has_one_row_with_all_its_relevant_items(shop: Path, tmp_path: Path) -> None:
    write_training_data(shop, tmp_path / "data")
    rows = pq.read_table(tmp_path / "data/dev.parquet").to_pylist()
    assert [(row["query_id"], row["reasoning"], row["title"], row["relevant_ids"]) for row in rows] == [
        *[("q1", "", "oak door", ["i1"]), ("q2", "", "garden hose", ["i3"])]
    ]
    assert pq.read_table(tmp_path / "data/teacher.parquet").num_rows == 1
