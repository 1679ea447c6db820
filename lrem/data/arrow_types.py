"""The few Arrow types that every stage works with, in place of the many that other programs write."""

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that values of a type are read as: one kind of text, of bytes, of lists and of fractions.

    >>> plain_type(pa.dictionary(pa.int32(), pa.large_string())), plain_type(pa.large_list(pa.float32()))
    (DataType(string), ListType(list<item: double>))
    """
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    return pa.float64() if pa.types.is_floating(kind) else kind


def is_list(kind: pa.DataType) -> bool:
    """Return True for a list of any of Arrow's layouts."""
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    return any(test(kind) for test in tests)


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table in plain types. Whole decimals become integers, or text where int64 cannot hold one."""
    columns = [_whole_decimals(_plain(table[name])) for name in table.column_names]
    return pa.Table.from_arrays(columns, table.column_names)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    target = plain_type(column.type)
    if column.type == target:
        return column
    narrow = column.type.value_type if is_list(column.type) else column.type
    if pa.types.is_float32(narrow) or pa.types.is_float16(narrow):  # 19.1 is to stay 19.1, not 19.100000381469727
        single, text = (pa.list_(kind) if is_list(column.type) else kind for kind in (pa.float32(), pa.string()))
        return column.cast(single).cast(text).cast(target)
    return column.cast(target)


def _whole_decimals(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_decimal(column.type):
        return column
    if column.type.scale > 0:
        return column if _is_exact(column) else column.cast(pa.string())
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column.cast(pa.string())


def _is_exact(column: pa.ChunkedArray) -> bool:
    """Return True if a float, written in its shortest form, is each of the decimals."""
    if column.type.precision <= 15:
        return True
    values: list[Any] = pc.drop_null(column).to_pylist()
    return all(Decimal(repr(float(value))) == value for value in values)
