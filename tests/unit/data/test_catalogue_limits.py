"""Items that could not be indexed are refused where a catalogue is read first, all of them at once."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrem.config import SourcesConfig
from lrem.curation.sources import import_tables
from lrem.data.catalogue_limits import _longest_payloads, require_usable
from lrem.data.files import write_parquet
from lrem.data.payloads import encode, large_integers_as_text, to_payloads
from lrem.data.schema import read_items
from lrem.errors import DataError
from tests.unit.curation.helpers import write_text

BAD: list[tuple[dict[str, Any], str]] = [
    ({"item_id": "x" * 513}, "its id has 513 characters, 1 to 512 are allowed"),
    ({"item_id": ""}, "its id has 0 characters"),
    ({"title": " "}, "its title is empty"),
    ({"title": "<emb> </think>"}, "its title is empty"),
    ({"title": "t" * 2001}, "its title has 2001 characters, at most 2000 are allowed"),
    ({"description": "d" * 70_000}, "bytes as JSON: at most 65536 bytes"),
    ({"description": "\x01" * 11_000}, "bytes as JSON: at most 65536 bytes"),  # six bytes each as JSON
    ({"attributes": {f"a{i}": "v" * 1000 for i in range(70)}}, "bytes as JSON: at most 65536 bytes"),
    ({"tags": ["t" * 100] * 700}, "bytes as JSON: at most 65536 bytes"),
    ({f"c{i}": 1 for i in range(300)}, "at most 256 fields"),
]


@pytest.mark.parametrize(("change", "problem"), BAD)
def test_a_bad_item_is_named_with_its_problem(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rows = [{"item_id": "good", "title": "tea"}, {"item_id": "bad", "title": "hat"} | change]
    table = pa.Table.from_pylist(rows, pa.Table.from_pylist([rows[1]]).schema)
    with pytest.raises(DataError, match=r"items.parquet: 1 item cannot be indexed: item '.*' \(row 1\): .*" + problem):
        read_items(write_parquet(table, tmp_path / "items.parquet"))


def test_all_bad_items_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    titles = ["tea" if i % 2 else "" for i in range(60)]
    table = pa.table({"item_id": [f"p{i}" for i in range(60)], "title": titles})
    with pytest.raises(DataError, match="30 items cannot be indexed: item 'p0' .*; item 'p38' .*; and 10 more: fill"):
        require_usable(table, tmp_path)


def test_nulls_are_no_fields(tmp_path: Path) -> None:
    """Wide exports of marketplaces have hundreds of columns, of which a product fills a few."""
    columns: dict[str, Any] = {f"c{i}": ["v", None] if i < 200 else [None, "v"] for i in range(400)}
    table = pa.table({"item_id": ["a", "b"], "title": ["tea", "hat"], **columns})
    assert read_items(write_parquet(table, tmp_path / "items.parquet")).num_rows == 2


def test_an_import_refuses_what_the_index_would(tmp_path: Path) -> None:
    catalogue = write_text(
        tmp_path / "items.csv", f"item_id,title,text\n1,tea,short\n2,hat,{'d' * 70_000}\n3,<emb>,x\n"
    )
    with pytest.raises(DataError, match=r"2 items cannot be indexed: item '2' \(row 1\): .*; item '3' \(row 2\)"):
        import_tables(SourcesConfig(catalogue=catalogue))


TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=9)
COLUMNS = {
    "text": st.none() | TEXT,
    "raw": st.none() | TEXT.map(str.encode),
    "number": st.none() | st.integers(-(2**62), 2**62),
    "fraction": st.none() | st.floats(),
    "flag": st.none() | st.booleans(),
    "tags": st.none() | st.lists(TEXT, max_size=4),
}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.fixed_dictionaries(COLUMNS), min_size=1, max_size=4))
def test_the_estimate_is_never_too_low(rows: list[dict[str, Any]]) -> None:
    kinds = [pa.string(), pa.binary(), pa.int64(), pa.float64(), pa.bool_(), pa.list_(pa.string())]
    table = pa.Table.from_pylist(rows, pa.schema(zip(COLUMNS, kinds, strict=True)))
    payloads = to_payloads(large_integers_as_text(table))
    longest = _longest_payloads(table).tolist()
    assert all(len(encode(one).encode()) <= bound for one, bound in zip(payloads, longest, strict=True))
