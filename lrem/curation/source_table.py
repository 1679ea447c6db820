"""Tables as they were read from a data set's files, with the path that error messages name."""

import difflib
from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from lrem.errors import DataError


class SourceTable(NamedTuple):
    """A table whose columns have our names and whose values are unchanged, and the path it came from."""

    path: str
    table: pa.Table


class RawDataset(NamedTuple):
    """The tables of a data set before cleaning.

    Attributes:
        items: with item_id and title.
        queries: with query, optionally query_id; None if the data set has neither queries nor judgements.
        judgements: with query_id or query, item_id, and optionally grade, which may be a label.
        grades: label → grade.
    """

    items: SourceTable
    queries: SourceTable | None
    judgements: SourceTable | None
    grades: dict[str, int]


def missing_column_error(path: str, name: str, names: list[str], remedy: str) -> DataError:
    """Return the error of a missing column, with the most similar name that exists."""
    similar = difflib.get_close_matches(name, names, n=1)
    suggestion = f", perhaps '{similar[0]}'" if similar else ""
    return DataError(f"{path} has no column '{name}' (it has {names}): {remedy}{suggestion}")


def select_columns(source: SourceTable, columns: Mapping[str, str]) -> SourceTable:
    """Keep the columns of a published layout under our names.

    Args:
        source: the published table.
        columns: our name → the published name.

    Raises:
        DataError: a column is missing.
    """
    names = source.table.column_names
    for published in columns.values():
        if published not in names:
            remedy = "use the published file, or set format table and map the columns"
            raise missing_column_error(source.path, published, names, remedy)
    return SourceTable(source.path, pa.table({name: source.table[column] for name, column in columns.items()}))
