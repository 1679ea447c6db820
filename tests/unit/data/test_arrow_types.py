"""Tables of other programs in the few types that every stage works with."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lrem.data.arrow_types import plain_table
from lrem.data.files import write_parquet
from lrem.data.payloads import large_integers_as_text, to_payloads
from lrem.data.schema import read_items
from lrem.errors import DataError

COLUMNS: list[tuple[pa.Array, pa.DataType, list[Any]]] = [
    (pa.array(["a", None], pa.large_string()), pa.string(), ["a", None]),
    (pa.array(["a", None], pa.string_view()), pa.string(), ["a", None]),
    (pa.array(["a", None]).dictionary_encode(), pa.string(), ["a", None]),
    (pa.array([7, None]).dictionary_encode(), pa.int64(), [7, None]),
    (pa.array([b"ab"], pa.binary(2)), pa.binary(), [b"ab"]),
    (pa.array([19.1, 19.9, None], pa.float32()), pa.float64(), [19.1, 19.9, None]),
    (pa.array([1.5, None], pa.float16()), pa.float64(), [1.5, None]),
    (pa.array([[19.1], None], pa.list_(pa.float32())), pa.list_(pa.float64()), [[19.1], None]),
    (pa.array([["a"]], pa.large_list(pa.large_string())), pa.list_(pa.string()), [["a"]]),
    (pa.array([[1, 2]], pa.list_(pa.int64(), 2)), pa.list_(pa.int64()), [[1, 2]]),
    (pa.array([5, 2**60], pa.decimal128(38, 0)), pa.int64(), [5, 2**60]),
    (pa.array([5, 10**30], pa.decimal128(38, 0)), pa.string(), ["5", str(10**30)]),
    (
        pa.array([Decimal("0.1")], pa.decimal128(38, 20)),
        pa.decimal128(38, 20),
        [Decimal("0.1").quantize(Decimal(10) ** -20)],
    ),
    (pa.array([Decimal("0.12345678901234567890")], pa.decimal128(38, 20)), pa.string(), ["0.12345678901234567890"]),
]


@pytest.mark.parametrize(("column", "kind", "values"), COLUMNS, ids=lambda part: str(getattr(part, "type", "")))
def test_a_column_keeps_its_values_in_a_plain_type(column: pa.Array, kind: pa.DataType, values: list[Any]) -> None:
    plain = plain_table(pa.table({"value": column}))["value"]
    assert plain.type == kind
    assert plain.to_pylist() == values


def test_a_map_is_an_object_and_large_numbers_are_text_in_every_list() -> None:
    columns = {
        "m": pa.array([[("k", "v")], None], pa.map_(pa.string(), pa.string())),
        "l": pa.array([[2**53 + 1, 5], None], pa.large_list(pa.int64())),
        "d": pa.array([2**53 + 1, 5], pa.decimal128(38, 0)),
    }
    payloads = to_payloads(large_integers_as_text(plain_table(pa.table(columns))))
    assert payloads == [{"m": {"k": "v"}, "l": [str(2**53 + 1), "5"], "d": str(2**53 + 1)}, {"d": "5"}]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_the_limits_hold_for_every_type_of_text(tmp_path: Path, kind: pa.DataType) -> None:
    long = (
        pa.array(["d" * 70_000]).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(["d" * 70_000], kind)
    )
    path = write_parquet(pa.table({"item_id": ["a"], "title": ["tea"], "text": long}), tmp_path / "items.parquet")
    with pytest.raises(DataError, match="at most 65536 bytes"):
        read_items(path)


def test_files_may_write_one_column_in_two_types(tmp_path: Path) -> None:
    brand = pa.array(["acme"])
    for i, column in enumerate((brand, brand.dictionary_encode(), brand.cast(pa.large_string()))):
        table = pa.table({"item_id": [f"p{i}"], "title": ["tea"], "brand": column})
        write_parquet(table, tmp_path / "items" / f"{i}.parquet")
    assert read_items(tmp_path / "items")["brand"].to_pylist() == ["acme"] * 3
