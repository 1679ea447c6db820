"""Lookup files: rows by query id, in order, each key once, written completely or not at all."""

from pathlib import Path

import pytest

from lrem.curation.query_lookup import IDS_PER_STATEMENT, QueryLookup, write_lookup
from lrem.errors import DataError


def test_rows_keep_their_order(tmp_path: Path) -> None:
    rows = [("q1", "b", 2), ("q2", "a", 0), ("q1", "a", None), ("q'\"ü", "x", 1.5)]
    lookup = QueryLookup(write_lookup(iter(rows), tmp_path / "known.sqlite", "qrels.parquet"))
    assert lookup.get(["q1", "q3", "q'\"ü"]) == {"q1": [("b", 2), ("a", None)], "q'\"ü": [("x", 1.5)]}
    assert lookup.get([]) == {}
    assert [file.name for file in tmp_path.iterdir()] == ["known.sqlite"]  # no journal, no temporary file


def test_more_ids_than_one_statement_takes(tmp_path: Path) -> None:
    ids = [f"q{i}" for i in range(2 * IDS_PER_STATEMENT + 1)]
    rows = ((query_id, query_id, i) for i, query_id in enumerate(ids))
    lookup = QueryLookup(write_lookup(rows, tmp_path / "known.sqlite", "qrels.parquet"))
    assert lookup.get([*ids, "other"]) == {query_id: [(query_id, i)] for i, query_id in enumerate(ids)}


def test_special_characters_in_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "50% off? #1 %41"
    folder.mkdir()
    lookup = QueryLookup(write_lookup([("q", "a", 1)], folder / "known.sqlite", "qrels.parquet"))
    assert lookup.get(["q"]) == {"q": [("a", 1)]}


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_lookup(((str(i), 1 // (3 - i), 0) for i in range(9)), tmp_path / "known.sqlite", "qrels.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "key", "message"),
    [
        ([("q", "a", 2), ("p", "a", 1), ("q", "a", 0)], ["query_id", "item_id"], "query_id 'q', item_id 'a' occurs"),
        ([("q", "hat", None), ("q", "coat", None)], ["query_id"], "query_id 'q' occurs"),
    ],
)
def test_a_repeated_key_is_refused_and_leaves_no_file(
    tmp_path: Path, rows: list[tuple[str, str, int | None]], key: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=f"source.parquet: {message}"):
        write_lookup(rows, tmp_path / "known.sqlite", "source.parquet", key)
    assert list(tmp_path.iterdir()) == []
