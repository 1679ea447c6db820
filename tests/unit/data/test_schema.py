"""Tables are checked when they are read."""

from pathlib import Path

import pyarrow as pa
import pytest

from lrem.data.files import write_parquet
from lrem.data.schema import QRELS, QUERIES, read_items, read_table
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
