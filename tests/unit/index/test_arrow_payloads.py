"""Columns of every Arrow type become payloads that filters compare as the type says."""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrem.data.payloads import large_integers_as_text, to_payloads
from lrem.errors import FilterError
from lrem.index import Collection
from lrem.index.filters import require_comparable

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=5)
FLOATS = st.floats(-1e6, 1e6, allow_nan=False)
DAYS = st.dates(date(1900, 1, 1), date(2100, 1, 1))
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1))
CENTS = st.decimals(-1000, 1000, places=2)
# Arrow type → its values, and what a value becomes
TYPES: dict[pa.DataType, tuple[st.SearchStrategy[Any], Callable[[Any], Any]]] = {
    pa.string(): (TEXT, lambda value: value),
    pa.large_string(): (TEXT, lambda value: value),
    pa.bool_(): (st.booleans(), lambda value: value),
    pa.int32(): (st.integers(-5, 5), lambda value: value),
    pa.int64(): (st.integers(-(2**53), 2**53), lambda value: value),
    pa.float64(): (FLOATS, lambda value: value),
    pa.decimal128(10, 2): (CENTS, float),
    pa.date32(): (DAYS, date.isoformat),
    pa.timestamp("us"): (MOMENTS, datetime.isoformat),
    pa.timestamp("us", "UTC"): (MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC)), datetime.isoformat),
    pa.duration("us"): (st.timedeltas(timedelta(0), timedelta(days=9)), timedelta.total_seconds),
    pa.binary(): (TEXT.map(str.encode), bytes.decode),
    pa.list_(pa.int64()): (st.lists(st.integers(-5, 5), max_size=3), lambda value: value),
    pa.list_(pa.decimal128(10, 2)): (st.lists(CENTS, max_size=3), lambda value: [float(one) for one in value]),
    pa.struct([("colour", pa.string())]): (st.fixed_dictionaries({"colour": TEXT}), lambda value: value),
}
COLUMNS = st.sampled_from(list(TYPES)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(st.none() | TYPES[kind][0], min_size=1, max_size=6))
)


def counts(folder: Path, payloads: list[dict[str, Any]], filters: list[dict[str, Any]]) -> list[int | None]:
    """Return how many payloads match each filter in a collection, None where the filter is refused."""
    collection = Collection(folder, "model", dimension=2)
    ids = [str(i) for i in range(len(payloads))]
    collection.upsert(ids, payloads, np.tile(np.float32([1, 0]), (len(ids), 1)))
    assert [record.payload for record in collection.get(ids).values()] == payloads
    results: list[int | None] = []
    for where in filters:
        try:
            require_comparable(where, collection.kinds(where))
            results.append(collection.count(where))
        except FilterError:
            results.append(None)
    collection.close()
    return results


@settings(max_examples=150, deadline=None)
@given(COLUMNS)
def test_any_column_survives_as_payload_and_in_filters(column: tuple[pa.DataType, list[Any]]) -> None:
    kind, values = column
    table = pa.table({"value": pa.array(values, kind)})
    payloads = to_payloads(large_integers_as_text(table))
    written = [None if value is None else TYPES[kind][1](value) for value in values]
    assert payloads == [{} if value is None else {"value": value} for value in written]
    present = [value for value in values if value is not None]
    bound = present[0] if present and not isinstance(present[0], list | dict) else None
    filters = [{"value": {"$exists": True}}, {"value": {"$exists": False}}]
    expected = [len(present), len(values) - len(present)]
    if bound is not None:
        filters.append({"value": TYPES[kind][1](bound)})
        expected.append(present.count(bound))
    if isinstance(bound, int | float | Decimal | date | timedelta) and not isinstance(bound, bool):
        filters += [{"value": {"$lt": TYPES[kind][1](bound)}}, {"value": {"$gte": TYPES[kind][1](bound)}}]
        expected += [sum(value < bound for value in present), sum(value >= bound for value in present)]
    with TemporaryDirectory() as folder:
        assert counts(Path(folder) / "index", payloads, filters) == expected


def test_a_column_of_large_integers_is_text_as_a_whole() -> None:
    table = pa.table({"uid": [1, 2**53 + 1], "year": [2024, 2025], "ids": [[1], [2**60, 3]], "more": [[1], None]})
    assert to_payloads(large_integers_as_text(table)) == [
        {"uid": "1", "year": 2024, "ids": ["1"], "more": [1]},
        {"uid": "9007199254740993", "year": 2025, "ids": [str(2**60), "3"]},
    ]


def test_the_values_of_a_shop(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "price": pa.array([Decimal("5.00"), Decimal("12.50"), None], pa.decimal128(10, 2)),
        "attrs": [{"colour": "red"}, None, {"colour": None}],
        "raw": [b"ab", b"\xff", None],
        "at": [time(8, 30), None, None],
        "rating": [float("nan"), 1.5, float("inf")],
    }
    payloads = to_payloads(pa.table(columns))
    assert payloads == [
        {"price": 5.0, "attrs": {"colour": "red"}, "raw": "ab", "at": "08:30:00"},
        {"price": 12.5, "raw": "/w==", "rating": 1.5},
        {"attrs": {"colour": None}},
    ]
    filters = [{"price": {"$lt": 10}}, {"attrs": {"$exists": True}}, {"attrs": {"$eq": "red"}}, {"raw": {"$lt": 1}}]
    assert counts(tmp_path / "index", payloads, filters) == [1, 2, None, None]


@pytest.mark.parametrize("text", ["2024-05-01", "2024-05-01T10:00:00+02:00"])
def test_a_date_is_compared_with_dates_of_every_precision(tmp_path: Path, text: str) -> None:
    days = [{"made": "2024-04-30"}, {"made": "2024-05-01T09:00:00"}, {"made": "2024-05-02T00:00:00Z"}, {"made": "soon"}]
    assert counts(tmp_path / text, days, [{"made": {"$gt": text}}, {"made": {"$lt": text}}]) == [2, 1]
