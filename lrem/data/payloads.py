"""Payloads: the JSON that is stored with an item, its limits, and what each Arrow type becomes in it."""

import base64
import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

MAX_FIELDS, MAX_DEPTH, MAX_BYTES = 256, 16, 65_536  # of a payload, which is kept in memory and returned with every hit
EXACT = 2**53  # a float holds whole numbers up to here exactly


def encode(payload: Any) -> str:
    """Return a payload as JSON.

    Raises:
        TypeError: it is not an object.
        ValueError: it is too large, is not JSON, or has a whole number that filters could not match exactly.
    """
    if not isinstance(payload, Mapping):
        raise TypeError("the payload is not an object")
    if len(payload) > MAX_FIELDS or _deeper(payload, MAX_DEPTH):
        raise ValueError(f"at most {MAX_FIELDS} fields, nested {MAX_DEPTH} deep, are allowed")
    for name, value in payload.items():
        if any(too_large(element) for element in (value if isinstance(value, list | tuple) else (value,))):
            raise ValueError(f"'{name}' is a whole number beyond 2^53: send it as a string")
    text = json.dumps(payload, allow_nan=False, ensure_ascii=False)
    if len(text.encode()) > MAX_BYTES:
        raise ValueError(f"{len(text.encode())} bytes as JSON: at most {MAX_BYTES} bytes are allowed")
    return text


def too_large(value: Any) -> bool:
    """Return whether a value is a whole number that a float cannot hold exactly."""
    return isinstance(value, int) and abs(value) > EXACT


def _deeper(value: Any, levels: int) -> bool:
    """Return whether a value is nested deeper than `levels`."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return False
    return levels == 0 or any(_deeper(part, levels - 1) for part in value)


def to_payloads(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows as JSON objects without null fields.

    Args:
        table: part of a table that went through `large_integers_as_text`.
    """
    rows = (to_json(row) for row in table.to_pylist(maps_as_pydicts="strict"))
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def large_integers_as_text(table: pa.Table) -> pa.Table:
    """Return the table with each column of whole numbers as text if one of them is beyond 2^53, also within lists.

    A filter could not compare such numbers exactly, and a column that is half text could not be filtered at all.
    """
    for i, name in enumerate(table.column_names):
        column = table[name]
        is_list = pa.types.is_list(column.type)
        values = pc.list_flatten(column) if is_list else column
        if pa.types.is_integer(values.type) and any(too_large(end) for end in pc.min_max(values).as_py().values()):
            table = table.set_column(i, name, column.cast(pa.list_(pa.string()) if is_list else pa.string()))
    return table


def to_json(value: Any) -> Any:
    """Convert a value to JSON types.

    Decimals become numbers, durations seconds, dates and times ISO text, bytes text (Base64 if they are not UTF-8), NaN
    and infinities null, whole numbers beyond 2^53 text.

    >>> to_json({"price": Decimal("5.00"), "tags": ["a", None], "since": date(2024, 5, 1), "uid": 2**53 + 1})
    {'price': 5.0, 'tags': ['a', None], 'since': '2024-05-01', 'uid': '9007199254740993'}
    """
    if isinstance(value, Decimal | timedelta):
        value = float(value) if isinstance(value, Decimal) else value.total_seconds()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if value is None or isinstance(value, bool | str) or (isinstance(value, int) and not too_large(value)):
        return value
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return str(value)
