"""Cleaning of imported items and queries: drop blank and repeated rows, and count them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lrem.curation.column_mapping import require_column
from lrem.curation.column_values import (
    cast_to_text,
    dictionary_codes,
    first_occurrences,
    is_filled,
    move_to_front,
    query_identities,
    require_filled,
)
from lrem.curation.source_table import SourceTable
from lrem.data.catalogue_limits import require_usable
from lrem.data.schema import ITEMS, QUERIES, TEXT
from lrem.errors import DataError


def clean_items(source: SourceTable, counts: dict[str, int]) -> pa.Table:
    """Return the items with a title, the first row of each id.

    Args:
        source: the catalogue.
        counts: receives the number of kept and dropped rows.

    Raises:
        DataError: a column is missing, an id is empty, no item has a title, or items cannot be indexed.
    """
    for name in ITEMS.names:
        require_column(source, name)
    table = cast_to_text(source, ITEMS.names)
    counts["items read"] = table.num_rows
    require_filled(table, "item_id", source.path)
    titled = table.filter(is_filled(table["title"]))
    counts["items without a title"] = table.num_rows - titled.num_rows
    kept = titled.filter(first_occurrences(dictionary_codes(titled["item_id"])[0]))
    counts["items repeated"] = titled.num_rows - kept.num_rows
    if kept.num_rows == 0:
        raise DataError(f"{source.path} has no item with a title: at least one is needed")
    require_usable(kept, source.path)
    counts["items"] = kept.num_rows
    return move_to_front(kept, ITEMS.names)


def clean_queries(source: SourceTable, counts: dict[str, int]) -> pa.Table:
    """Return the queries that are not blank, one row per id, or per text if they have no ids.

    Args:
        source: the queries.
        counts: receives the number of kept and dropped rows.

    Raises:
        DataError: a column is missing, an id is empty or has two texts, or every query is blank.
    """
    require_column(source, "query")
    has_ids = "query_id" in source.table.column_names
    table = cast_to_text(source, QUERIES.names if has_ids else ["query"])
    counts["queries read"] = table.num_rows
    if has_ids:
        require_filled(table, "query_id", source.path)
    filled = table.filter(is_filled(table["query"]))
    counts["queries blank"] = table.num_rows - filled.num_rows
    if filled.num_rows == 0:
        raise DataError(f"{source.path} has no query that is not blank: at least one is needed")
    stripped = pc.utf8_trim_whitespace(filled["query"])
    filled = filled.set_column(filled.column_names.index("query"), "query", stripped)
    merge = _first_of_each_id if has_ids else _first_of_each_text
    kept = merge(filled, query_identities(stripped), source.path)
    counts["queries repeated"] = filled.num_rows - kept.num_rows
    counts["queries"] = kept.num_rows
    return move_to_front(kept, QUERIES.names)


def _first_of_each_id(table: pa.Table, identities: np.ndarray, path: str) -> pa.Table:
    """Keep the first row of each id; all its rows must have the same text."""
    codes, _ = dictionary_codes(table["query_id"])
    _, first = np.unique(codes, return_index=True)
    different = np.flatnonzero(identities != identities[first[codes]])
    if len(different):
        row = int(different[0])
        texts = [table["query"][i].as_py() for i in (int(first[codes[row]]), row)]
        raise DataError(
            f"{path}: query_id '{table['query_id'][row]}' has two texts, '{texts[0]}' and '{texts[1]}': give each text "
            "its own id, or drop the column, and ids are made from the texts"
        )
    return table.filter(first_occurrences(codes))


def _first_of_each_text(table: pa.Table, identities: np.ndarray, path: str) -> pa.Table:
    """Keep the first row of each text; add its frequency and an id, the hexadecimal `query_identity`."""
    frequencies = np.ones(table.num_rows, dtype=np.int64)
    if "count" in table.column_names:  # the log is aggregated already
        try:
            frequencies = pc.fill_null(table["count"].cast(pa.int64()), 1).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"{path}: 'count' is not a column of whole numbers ({error}): repair or rename it"
            ) from error
        table = table.drop_columns(["count"])
    _, codes = np.unique(identities, return_inverse=True)
    sums = np.zeros(codes.max() + 1, dtype=np.int64)
    np.add.at(sums, codes, frequencies)
    first = first_occurrences(codes)
    kept = table.filter(first).append_column("count", pa.array(sums[codes[first]]))
    return kept.append_column("query_id", pa.array([f"{value:016x}" for value in identities[first].tolist()], TEXT))
