"""CSV and JSON lines as Arrow tables, and the types of columns that a text format does not declare."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from pyarrow.fs import FileSystem

from lrem.errors import DataError

BLOCK_BYTES = 1 << 24  # a CSV row must fit in a block
INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"  # fits in int64; no leading zeros, so that a barcode stays text
DECIMAL = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$"
BOOLEAN = "^([Tt]rue|[Ff]alse|TRUE|FALSE)$"


def read_csv(system: FileSystem, name: str, delimiter: str) -> pa.Table:
    """Read CSV with every column as text.

    pyarrow would guess types from the first block, and fail on a later row of another type.
    """
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    read = pa.csv.ReadOptions(block_size=BLOCK_BYTES)
    with system.open_input_stream(name) as stream, pa.csv.open_csv(stream, read, parse) as reader:
        types = dict.fromkeys(reader.schema.names, pa.string())
    with system.open_input_stream(name) as stream:
        return pa.csv.read_csv(stream, read, parse, pa.csv.ConvertOptions(column_types=types))


def infer_type(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a text column to int64, float64 or bool if every non-empty cell allows it, empty cells to null."""
    values = pc.if_else(pc.not_equal(column, ""), column, pa.scalar(None, pa.string()))
    if values.null_count == len(values):
        return column
    for pattern, arrow_type in ((INTEGER, pa.int64()), (DECIMAL, pa.float64()), (BOOLEAN, pa.bool_())):
        if pc.all(pc.match_substring_regex(values, pattern)).as_py():
            return values.cast(arrow_type)
    return column


def read_json_lines(system: FileSystem, name: str) -> pa.Table:
    """Read one JSON object per line with Python's parser.

    pyarrow's parser turns text that looks like a date into one, and refuses `1` beside `"a"`.

    Raises:
        DataError: a line is not a JSON object.
    """
    rows = []
    for number, line in read_lines(system, name):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}, line {number} is not JSON ({error}): write one object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number} is not a JSON object: write one object per line")
        rows.append(row)
    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({key: _to_array([row.get(key) for row in rows]) for key in names})


def read_lines(system: FileSystem, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, numbered from 1. Only \\n ends a line: texts may contain U+2028.

    Raises:
        DataError: the file is not UTF-8.
    """
    try:
        with system.open_input_stream(name) as stream:
            for number, line in enumerate(io.TextIOWrapper(stream, "utf-8-sig", newline="\n"), 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 ({error}): convert it") from error


def _to_array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (ValueError, TypeError, OverflowError):  # mixed types, integers beyond int64, unpaired surrogates
        texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values)
        encodable = (text.encode("utf-8", "replace").decode() for text in texts)
        return pa.array([None if value is None else text for value, text in zip(values, encodable, strict=True)])
