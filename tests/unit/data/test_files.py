"""Doors: tables are checked when read, artefacts appear whole or not at all."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.data.files import atomic_file, atomic_folder, write_parquet
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
        ({"item_id": ["x", "y"], "title": ["a", None]}, "null in row 1"),
        ({"item_id": ["x", "y"], "title": ["a", "  "]}, "item 'y' .row 1. has an empty title"),
        ({"item_id": ["x", "x"], "title": ["a", "b"]}, "'x' appears more than once"),
        ({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())}, "no rows"),
        ({"item_id": ["x"], "title": [[1]]}, "is list"),
    ],
)
def test_bad_catalogues_are_named(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_items(write(tmp_path / "items.parquet", **columns))


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "none.parquet", QUERIES)
    (tmp_path / "text.parquet").write_text("query_id,query")
    with pytest.raises(DataError, match="convert it to parquet"):
        read_table(tmp_path / "text.parquet", QUERIES)


def test_types_are_cast_or_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "qrels.parquet", query_id=[1], item_id=["a"], grade=[1.0])
    assert read_table(path, QRELS).to_pylist() == [{"query_id": "1", "item_id": "a", "grade": 1}]
    with pytest.raises(DataError, match="grade"):
        read_table(write(tmp_path / "bad.parquet", query_id=["1"], item_id=["a"], grade=["E"]), QRELS)


def test_a_failing_swap_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    with atomic_folder(folder) as part:
        (part / "weights").write_text("old")
    rename, calls = os.rename, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:  # the new folder's turn
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as part:
        (part / "weights").write_text("new")
    assert (folder / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failing_write_leaves_the_old_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", x=[1])
    with pytest.raises(RuntimeError), atomic_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    folder = tmp_path / "model"
    with atomic_folder(folder) as part:
        (part / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as part:
        (part / "weights").write_text("half")
        raise KeyboardInterrupt
    with atomic_folder(folder) as part:
        (part / "other").write_text("new")
    assert pq.read_table(path).to_pydict() == {"x": [1]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "model"]
    assert [p.name for p in folder.iterdir()] == ["other"]
