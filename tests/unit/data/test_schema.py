"""Tables are checked when they are read."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from lrem.curation.table_files import read_table_files
from lrem.data.files import write_parquet
from lrem.data.schema import ITEMS, QRELS, QUERIES, RELEVANT, RL_PAIRS, read_batches, read_items, read_table
from lrem.errors import DataError


def write(path: Path, **columns: list[object]) -> Path:
    return write_parquet(pa.table(columns), path)


def test_items_keep_their_payload(tmp_path: Path) -> None:
    path = write(tmp_path / "items.parquet", price=[1.5, 2.0], title=["a b", "c"], item_id=["x", "y"])
    table = read_items(path)
    assert table.column_names == ["item_id", "title", "price"]
    assert table.to_pylist()[1] == {"item_id": "y", "title": "c", "price": 2.0}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["x"], "tilte": ["a"]}, "no column 'title'.*rename 'tilte'"),
        ({"item_id": ["x", "y"], "title": ["a", None]}, "'title' is null in row 1"),
        ({"item_id": ["x", "y"], "title": ["a", "  "]}, "item 'y' .row 1."),
        ({"item_id": ["x", "x"], "title": ["a", "b"]}, "'x'"),
        ({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())}, "no rows"),
        ({"item_id": ["x"], "title": [[1]]}, "'title' is list"),
    ],
)
def test_errors_name_the_row_or_column(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_items(write(tmp_path / "items.parquet", **columns))


def test_missing_files_and_other_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.parquet does not exist"):
        read_table(tmp_path / "none.parquet", QUERIES)
    (tmp_path / "text.parquet").write_text("query_id,query")
    with pytest.raises(DataError, match="text.parquet"):
        read_table(tmp_path / "text.parquet", QUERIES)


def test_types_are_cast_or_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "qrels.parquet", query_id=[1], item_id=["a"], grade=[1.0])
    assert read_table(path, QRELS).to_pylist() == [{"query_id": "1", "item_id": "a", "grade": 1}]
    with pytest.raises(DataError, match="bad.parquet: 'grade'"):
        read_table(write(tmp_path / "bad.parquet", query_id=["1"], item_id=["a"], grade=["E"]), QRELS)


def test_optional_columns_follow_if_the_file_has_them(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {"query_id": ["q"], "query": ["a"], "item_id": ["i"], "title": ["b"]}
    path = write(tmp_path / "pairs.parquet", **columns, relevant_ids=[[1, 2]], more=[0])
    table = read_table(path, RL_PAIRS, optional=RELEVANT)
    assert table.column_names == [*RL_PAIRS.names, "relevant_ids"]
    assert table["relevant_ids"].to_pylist() == [["1", "2"]]
    null = write(tmp_path / "null.parquet", **columns, relevant_ids=pa.array([None], pa.list_(pa.string())))
    assert read_table(null, RL_PAIRS, optional=RELEVANT)["relevant_ids"].to_pylist() == [None]
    without = write(tmp_path / "without.parquet", **columns)
    assert read_table(without, RL_PAIRS, optional=RELEVANT).column_names == RL_PAIRS.names
    with pytest.raises(DataError, match="text.parquet: 'relevant_ids' is string"):
        read_table(write(tmp_path / "text.parquet", **columns, relevant_ids=["i j"]), RL_PAIRS, optional=RELEVANT)


def test_a_folder_has_the_columns_of_all_its_files_and_of_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "shop=x" / "items"
    write(folder / "brand=T%26G" / "year=2024" / "1.parquet", item_id=["a"], title=["coat"])
    write(folder / "brand=007" / "year=2025" / "2.parquet", item_id=[3], title=["hat"], price=[1.5], tags=[["x"]])
    rows = read_items(folder).to_pylist()
    assert sorted(rows, key=lambda row: str(row["item_id"])) == [
        {"item_id": "3", "title": "hat", "price": 1.5, "tags": ["x"], "brand": "007", "year": 2025},
        {"item_id": "a", "title": "coat", "price": None, "tags": None, "brand": "T&G", "year": 2024},
    ]
    assert read_table(folder.as_uri(), ITEMS, keep_extra=True).to_pylist() == rows
    batches = pa.concat_tables(read_batches(folder, ITEMS, ("brand",)))
    assert sorted(batches["brand"].to_pylist()) == ["007", "T&G"]


@pytest.mark.parametrize("reader", [read_items, lambda folder: read_table_files(str(folder))])
def test_a_column_of_some_files_and_of_the_path_of_others_is_refused(
    tmp_path: Path, reader: Callable[[Path], pa.Table]
) -> None:
    write(tmp_path / "items" / "brand=acme" / "1.parquet", item_id=["a"], title=["coat"])
    write(tmp_path / "items" / "brand=muji" / "2.parquet", item_id=["b"], title=["hat"], brand=["Muji"])
    with pytest.raises(DataError, match=r"'brand' is a column of some files.*brand=…"):
        reader(tmp_path / "items")
    write(tmp_path / "items" / "brand=acme" / "1.parquet", item_id=["a"], title=["coat"], brand=["Acme"])
    assert sorted(reader(tmp_path / "items")["brand"].to_pylist()) == ["Acme", "Muji"]


@pytest.mark.parametrize("first", ["1", "2"])
def test_an_optional_column_counts_in_whichever_file_it_is(tmp_path: Path, first: str) -> None:
    columns: dict[str, list[object]] = {"query_id": ["q"], "query": ["a"], "item_id": ["i"], "title": ["b"]}
    write(tmp_path / "pairs" / "0.parquet", **columns, **({"relevant_ids": [["r"]]} if first == "1" else {}))
    write(tmp_path / "pairs" / "1.parquet", **columns, **({"relevant_ids": [["r"]]} if first == "2" else {}))
    table = read_table(tmp_path / "pairs", RL_PAIRS, optional=RELEVANT)
    assert table["relevant_ids"].to_pylist() == ([["r"], None] if first == "1" else [None, ["r"]])


def test_types_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "numbers" / "1.parquet", item_id=["a"], title=["coat"], part=[2**53 + 1])
    write(tmp_path / "numbers" / "2.parquet", item_id=["b"], title=["hat"], part=[1.5])
    with pytest.raises(DataError, match="9007199254740993 not in range"):
        read_items(tmp_path / "numbers")
    write(tmp_path / "items" / "1.parquet", item_id=["a"], title=["coat"], price=[1.5])
    write(tmp_path / "items" / "2.parquet", item_id=["b"], title=["hat"], price=["cheap"])
    with pytest.raises(DataError, match="'price' is double in one file and string in another"):
        read_items(tmp_path / "items")
