"""CSV, TSV and JSON lines as Arrow tables, and the types of columns that a text format does not declare."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileSystem

from lrem.data.payloads import EXACT
from lrem.errors import DataError

MAX_CELL_CHARACTERS = 1 << 24
BATCH_ROWS = 1 << 16
INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"  # fits in int64; no leading zeros, so that a barcode stays text
DECIMAL = r"^(0|-?[1-9][0-9]*|-?(0|[1-9][0-9]*)\.[0-9]+)([eE][-+]?[0-9]+)?$"
WHOLE = "^[-+]?[0-9]+$"
POINT_ZERO = r"^(-?[0-9]+)\.0$"
BOOLEAN = "^([Tt]rue|[Ff]alse|TRUE|FALSE)$"
OTHER_DELIMITERS = ";\t|,"


class TextFormat(NamedTuple):
    """How text files are written.

    Attributes:
        delimiter: the separator of CSV columns. TSV always has tabs.
        encoding: of CSV, TSV and JSON lines.
        ids: columns of CSV and TSV in which `12.0` is 12: pandas writes ids as floats if one cell is empty.
    """

    delimiter: str = ","
    encoding: str = "utf-8"
    ids: tuple[str, ...] = ()


def read_csv(system: FileSystem, name: str, text: TextFormat) -> pa.Table:
    """Read CSV with every column as text. A field may be quoted; a quote later in a field is text.

    Raises:
        DataError: there is no header, a row has another number of fields than the header, a quoted field goes on after
            its closing quote or is never closed, or the encoding or delimiter is another one. The message names the
            line.
    """
    hint = 'quote a field that contains the delimiter, a line break or a quote at its start, as in """Big"" lamp"'
    return _read_rows(system, name, text.encoding, {"delimiter": text.delimiter, "strict": True}, hint)


def read_tsv(system: FileSystem, name: str, text: TextFormat) -> pa.Table:
    """Read tab-separated values with every column as text. There is no quoting: `"24 inch" monitor` keeps its quotes.

    Raises:
        DataError: as `read_csv`.
    """
    hint = "write one line a row and no tabs within a field"
    return _read_rows(system, name, text.encoding, {"delimiter": "\t", "quoting": csv.QUOTE_NONE}, hint)


def _read_rows(system: FileSystem, name: str, encoding: str, dialect: dict[str, Any], hint: str) -> pa.Table:
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    with _open_text(system, name, encoding, newline="") as stream:
        rows = _checked_rows(csv.reader(stream, **dialect), name, dialect["delimiter"], hint)
        header = next(rows, None)
        if header is None:
            raise DataError(f"{name} is empty: its first line must name the columns")
        batches = []
        while batch := list(islice(rows, BATCH_ROWS)):
            columns = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
            batches.append(pa.Table.from_arrays(columns, header))
    empty = pa.Table.from_arrays([pa.array([], pa.string())] * len(header), header)
    return pa.concat_tables([empty, *batches])


def _checked_rows(reader: Any, name: str, delimiter: str, hint: str) -> Iterator[list[str]]:
    """Yield the rows that are not blank lines, the header first."""
    header: list[str] | None = None
    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name}, line {reader.line_num}, in a row that begins on line {begin}: {error}: {hint}"
            ) from error
        if not row:
            continue
        if header is None:
            header = row = [row[0].removeprefix("\ufeff"), *row[1:]]
            _check_header(header, name, delimiter)
        elif len(row) != len(header):
            raise DataError(f"{name}, line {begin} has {len(row)} fields, and the header {len(header)}: {hint}")
        yield row


def _check_header(header: list[str], name: str, delimiter: str) -> None:
    if any("\0" in column for column in header):
        raise DataError(f"{name} is not in the expected encoding: set sources.encoding, such as utf-16-le")
    others = [other for other in OTHER_DELIMITERS if other != delimiter and other in header[0]]
    if len(header) == 1 and others:
        remedy = f"set sources.delimiter to {others[0]!r} if that separates its columns"
        if delimiter == "\t":
            remedy = "separate the columns by tabs, or rename it to .csv"
        raise DataError(f"{name} has the single column {header[0]!r}: {remedy}")


def infer_type(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a text column to int64, float64 or bool if every non-empty cell allows it, empty cells to null.

    A column becomes numbers only if turning each cell into a number and back gives the same text: `1.10`, `1E5` and
    `007` stay text.
    """
    values = _empty_to_null(column)
    if values.null_count == len(values):
        return column
    if _all_match(values, INTEGER):
        return values.cast(pa.int64())
    if _all_match(values, DECIMAL):
        numbers = values.cast(pa.float64())
        written = numbers.cast(pa.string())
        has_point = pc.match_substring(written, ".")
        with_point = pc.if_else(has_point, written, pc.binary_join_element_wise(written, "0", "."))
        if any(pc.all(pc.equal(values, text)).as_py() for text in (written, with_point)):
            return numbers
    return values.cast(pa.bool_()) if _all_match(values, BOOLEAN) else column


def to_numbers(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """Cast a text column to int64 or float64, empty cells to null, however its numbers are written.

    Raises:
        DataError: a cell is not a number, or is a whole number that none of the two types holds exactly.
    """
    values = _empty_to_null(column)
    if _all_match(values, INTEGER):
        return values.cast(pa.int64())
    try:
        numbers = values.cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: '{name}' is in sources.numbers, but not all numbers ({error}): repair it") from error
    inexact = pc.and_(pc.match_substring_regex(values, WHOLE), pc.greater_equal(pc.abs(numbers), float(EXACT)))
    row = pc.index(inexact, True).as_py()
    if row >= 0:
        raise DataError(
            f"{path}: '{name}' is in sources.numbers, but {values[row]} in row {row} is not below 2^53, and would be "
            "altered in a column with fractions or such long numbers: leave it text"
        )
    return numbers


def without_point_zero(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text ids `12.0` as `12` if all of them end so."""
    all_end_so = _all_match(_empty_to_null(ids), POINT_ZERO)
    return pc.replace_substring_regex(ids, POINT_ZERO, r"\1") if all_end_so else ids


def holds_numbers(column: pa.ChunkedArray) -> bool:
    """Return True if a column is text, and each cell that is not empty is a number without leading zeros."""
    if not pa.types.is_string(column.type):
        return False
    values = _empty_to_null(column)
    return values.null_count < len(values) and _all_match(values, DECIMAL)


def _empty_to_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a text column with null in place of empty cells."""
    return pc.if_else(pc.not_equal(column, ""), column, pa.scalar(None, pa.string()))


def _all_match(values: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def read_json_lines(system: FileSystem, name: str, encoding: str = "utf-8") -> pa.Table:
    """Read one JSON object per line with Python's parser.

    pyarrow's parser turns text that looks like a date into one, and refuses `1` beside `"a"`.

    Raises:
        DataError: a line is not a JSON object.
    """
    rows = []
    for number, line in read_lines(system, name, encoding):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}, line {number} is not JSON ({error}): write one object per line") from error
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number} is not a JSON object: write one object per line")
        rows.append(row)
    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({key: _to_array([row.get(key) for row in rows]) for key in names})


def read_lines(system: FileSystem, name: str, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, numbered from 1. Only \\n ends a line: texts may contain U+2028.

    Raises:
        DataError: the file has another encoding.
    """
    with _open_text(system, name, encoding, newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            line = line.removeprefix("\ufeff") if number == 1 else line
            if line.strip():
                yield number, line.rstrip("\r\n")


@contextmanager
def _open_text(system: FileSystem, name: str, encoding: str, newline: str) -> Iterator[io.TextIOWrapper]:
    """Open a file as text, without the byte-order mark of UTF-8."""
    codec = codecs.lookup(encoding).name
    try:
        with system.open_input_stream(name) as stream:
            yield io.TextIOWrapper(stream, "utf-8-sig" if codec == "utf-8" else codec, newline=newline)
    except UnicodeError as error:
        raise DataError(
            f"{name} is not {codec.upper()} ({error}): set sources.encoding (latin-1, cp1252, utf-16, …), or convert it"
        ) from error


def _to_array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (ValueError, TypeError, OverflowError):  # mixed types, integers beyond int64, unpaired surrogates
        texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values)
        encodable = (text.encode("utf-8", "replace").decode() for text in texts)
        return pa.array([None if value is None else text for value, text in zip(values, encodable, strict=True)])
