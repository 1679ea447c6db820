"""Cleaning of imported judgements: grades from labels, known queries and items only, each pair once."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lrem.curation.column_mapping import require_column
from lrem.curation.column_values import cast_to_text, dictionary_codes, match_known_ids, query_identities
from lrem.curation.source_table import SourceTable
from lrem.data.schema import QRELS, TEXT
from lrem.errors import DataError

GRADE_WORDS = {"grade", "label", "relevance", "gain"}  # a column with one of these in its name is not about clicks


def clean_qrels(
    source: SourceTable,
    queries_have_ids: bool,
    grades: dict[str, int],
    items: pa.Table,
    queries: pa.Table,
    counts: dict[str, int],
) -> pa.Table:
    """Return the judgements of known queries and items, each pair once with its highest grade.

    Args:
        source: the judgements.
        queries_have_ids: whether the file of queries has ids; if not, judgements name queries by their text.
        grades: label → grade.
        items: the clean items.
        queries: the clean queries.
        counts: receives the number of kept and dropped rows.

    Raises:
        DataError: a column is missing, a label has no grade, or no pair is usable.
    """
    require_column(source, "item_id")
    key = "query_id" if queries_have_ids and "query_id" in source.table.column_names else "query"
    if key == "query":
        remedy = "as the queries have no ids of their own, set sources.columns.query to the column of the text"
        require_column(source, "query", remedy)
    text = cast_to_text(source, [key, "item_id"])
    counts["qrels read"] = text.num_rows
    keys = text[key] if key == "query" else match_known_ids(text[key], queries["query_id"])
    columns = {key: keys, "item_id": match_known_ids(text["item_id"], items["item_id"])}
    pairs = pa.table(columns | {"grade": _grade_column(source, grades)})
    if key == "query":
        pairs = _with_query_ids(pairs, queries)
    known = pairs.filter(pc.is_in(pairs["query_id"], value_set=queries["query_id"]))
    counts["qrels of unknown queries"] = pairs.num_rows - known.num_rows
    usable = known.filter(pc.is_in(known["item_id"], value_set=items["item_id"]))
    counts["qrels of unknown items"] = known.num_rows - usable.num_rows
    if usable.num_rows == 0:
        raise DataError(
            f"{source.path}: none of {pairs.num_rows} pairs has a known query and a known item: check that '{key}' and "
            "'item_id' contain the values of the queries and the catalogue (sources.columns)"
        )
    best = usable.group_by(["query_id", "item_id"], use_threads=False).aggregate([("grade", "max")])  # keeps the order
    counts["qrels repeated"] = usable.num_rows - best.num_rows
    counts["qrels"] = best.num_rows
    return best.rename_columns(QRELS.names).cast(QRELS)


def _with_query_ids(pairs: pa.Table, queries: pa.Table) -> pa.Table:
    """Add `query_id` by the text: null for an unknown text, and one row per id of a text that has several."""
    ids: dict[int, list[str | None]] = {}
    identities = query_identities(queries["query"]).tolist()
    for identity, query_id in zip(identities, queries["query_id"].to_pylist(), strict=True):
        ids.setdefault(identity, []).append(query_id)
    matches = [ids.get(identity, [None]) for identity in query_identities(pairs["query"]).tolist()]
    rows = np.repeat(np.arange(len(matches)), [len(match) for match in matches])
    query_ids = pa.array([query_id for match in matches for query_id in match], TEXT)
    return pairs.take(pa.array(rows)).append_column("query_id", query_ids)


def _grade_column(source: SourceTable, grades: dict[str, int]) -> pa.Array:
    """Return [N] int64: mapped labels, whole numbers as they are, or 1 if there is no grade column."""
    names = source.table.column_names
    if "grade" not in names:
        similar = [name for name in names if GRADE_WORDS & set(re.split("[^a-z]+", name.lower()))]
        if similar:
            remedy = f"set sources.columns.grade to '{similar[0]}', or rename it if the pairs are clicks"
            raise DataError(f"{source.path} has no column 'grade', but '{similar[0]}': {remedy}")
        return pa.array(np.ones(source.table.num_rows, dtype=np.int64))
    column = cast_to_text(source, ["grade"])["grade"]
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{source.path}: 'grade' is null in row {row}: fill it or drop the row")
    codes, labels = dictionary_codes(column)
    mapped = {_normalize_label(label): grade for label, grade in grades.items()}
    return pa.array(np.array([_grade(label, mapped, source.path) for label in labels], dtype=np.int64)[codes])


def _normalize_label(label: str) -> float | str:
    """Return a number if the label is one, so that "0.10" and 0.1 are the same label.

    >>> _normalize_label("0.10"), _normalize_label(" E ")
    (0.1, 'E')
    """
    try:
        return float(label)
    except ValueError:
        return label.strip()


def _grade(label: str, mapped: dict[float | str, int], path: str) -> int:
    value = _normalize_label(label)
    remedy = f"map it, as in sources.grades: {{'{label}': 1}}"
    if value in mapped:
        grade = mapped[value]
    elif value in ("true", "false"):
        grade = int(value == "true")
    elif isinstance(value, str):
        raise DataError(f"{path}: the label '{label}' is neither a number nor in sources.grades: {remedy}")
    elif not value.is_integer():
        raise DataError(f"{path}: the grade {label} is not a whole number: {remedy}")
    else:
        grade = int(value)
    if grade < 0:
        raise DataError(f"{path}: the grade of '{label}' is {grade}, below 0: {remedy}")
    return grade
