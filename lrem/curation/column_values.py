"""Operations on the columns of imported tables: as text, blank cells, distinct values, first occurrences."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lrem.curation.source_table import SourceTable
from lrem.curation.text_formats import POINT_ZERO
from lrem.data.known_positives import query_identity
from lrem.data.schema import TEXT
from lrem.errors import DataError


def cast_to_text(source: SourceTable, names: list[str]) -> pa.Table:
    """Return the table with these columns as text.

    Raises:
        DataError: a column cannot be text.
    """
    table = source.table
    for name in names:
        text = _as_text(table[name], name, source.path)
        table = table.set_column(table.column_names.index(name), name, text)
    return table


def _as_text(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """Write whole numbers without ".0", as pandas writes ids if one cell is empty."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py():
            column = column.cast(pa.int64())
        return column.cast(TEXT)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: '{name}' is {column.type}, not text: convert it ({error})") from error


def match_known_ids(ids: pa.ChunkedArray, known: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return text ids in the spelling that is known: `12` for `12.0`, or `12.0` for `12`."""
    for other in (pc.replace_substring_regex(ids, POINT_ZERO, r"\1"), pc.binary_join_element_wise(ids, "0", ".")):
        better = pc.and_not(pc.is_in(other, value_set=known), pc.is_in(ids, value_set=known))
        ids = pc.if_else(better, other, ids)
    return ids


def is_filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return [N] bool: True where a text is neither null nor blank."""
    return pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(column), ""), False)


def require_filled(table: pa.Table, name: str, path: str) -> None:
    """Check that no cell of a text column is null or blank.

    Raises:
        DataError: one is; the message names the first row.
    """
    row = pc.index(is_filled(table[name]), False).as_py()
    if row >= 0:
        raise DataError(f"{path}: '{name}' is empty in row {row}: fill it or drop the row")


def dictionary_codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Return each value's position [N] in the list [K] of distinct values; the column has no nulls."""
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def first_occurrences(codes: np.ndarray) -> np.ndarray:
    """Return [N] bool: True where a code occurs for the first time.

    >>> first_occurrences(np.array([2, 2, 0])).tolist()
    [True, False, True]
    """
    mask = np.zeros(len(codes), dtype=bool)
    mask[np.unique(codes, return_index=True)[1]] = True
    return mask


def query_identities(texts: pa.ChunkedArray) -> np.ndarray:
    """Return the `query_identity` of each text, null counting as empty; [N] int64."""
    codes, distinct = dictionary_codes(pc.fill_null(texts, ""))
    return np.array([query_identity(text) for text in distinct], dtype=np.int64)[codes]


def move_to_front(table: pa.Table, names: list[str]) -> pa.Table:
    """Return the table with these columns first."""
    return table.select([*names, *(name for name in table.column_names if name not in names)])
