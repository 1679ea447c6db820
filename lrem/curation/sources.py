"""From foreign files to the project's tables: what of a catalogue, queries and judgements is fit for use.

Knows rows: blank ones, repeated ones, unknown ones, labels. Does not know file formats
(`lrem.curation.dataset_readers` reads them), nor where the tables are written.
"""

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lrem.config import SourcesConfig
from lrem.curation.dataset_readers import READERS, Raw, Source, missing, read_any
from lrem.data.known_positives import query_identity
from lrem.data.schema import ITEMS, QRELS, QUERIES, TEXT
from lrem.errors import DataError

# What each file may hold of the columns that mean something here; any other mapped name is payload.
MEANINGS = {
    "catalogue": {"item_id", "title"},
    "queries": {"query_id", "query"},
    "judgements": {"query_id", "query", "item_id", "grade"},
}
ALL_MEANINGS = set().union(*MEANINGS.values())
LABELS = {"grade", "label", "relevance", "gain"}  # words of a column's name: such pairs are no mere clicks


class Imported(NamedTuple):
    """The tables of every stage (`lrem.data.schema`: ITEMS, QUERIES, QRELS), and how many rows were dropped."""

    items: pa.Table
    queries: pa.Table
    qrels: pa.Table | None
    counts: dict[str, int]


def import_tables(sources: SourcesConfig) -> Imported:
    """Read and clean what `sources` names.

    items: item_id (unique), title (not blank), payload.
    queries: query_id (unique), query (stripped, not blank), payload. A log without ids gets `count` and ids made of the
    text, case and spacing aside. Without a file of queries the judgements' texts are taken; without either the table
    is empty.
    qrels: query_id, item_id, grade ≥ 0, both ids known, each pair once with its highest grade. Without a grade column
    every pair is a click and has grade 1. None without judgements.

    Raises:
        DataError: a file, column or setting is missing; an id is null; one id has two texts; a label has no grade; no
            row is fit for use. The message names the file, the row or value, and the remedy.
    """
    raw = READERS[sources.format](sources) if sources.format in READERS else _tables(sources)
    counts: dict[str, int] = {}
    items = _items(raw.items, counts)
    queries = QUERIES.empty_table() if raw.queries is None else _queries(raw.queries, counts)
    qrels = None
    if raw.judgements is not None and raw.queries is not None:
        by_id = "query_id" in raw.queries.table.column_names
        qrels = _qrels(raw.judgements, by_id, raw.grades, items, queries, counts)
    return Imported(items, queries, qrels, counts)


def _tables(sources: SourcesConfig) -> Raw:
    """Format `table`: each file by its own ending, columns by the map."""
    only_published = [name for name in ("folder", "locale") if getattr(sources, name) is not None]
    if only_published:
        raise DataError(f"format table does not use sources.{only_published[0]}: remove it, or set sources.format")
    if sources.catalogue is None:
        raise DataError("format table needs sources.catalogue: set it to a file of items")
    paths = {"catalogue": sources.catalogue, "queries": sources.queries, "judgements": sources.judgements}
    read = {
        file: Source(path, read_any(path, text=_column_map(sources.columns, file).values()))
        for file, path in paths.items()
        if path is not None
    }
    _all_found(sources.columns, read)
    found = {file: _renamed(source, file, sources.columns) for file, source in read.items()}
    queries, judgements = found.get("queries"), found.get("judgements")
    if queries is None and judgements is not None:
        _need(judgements, "query", "set sources.queries, or sources.columns.query to its name")
        table = judgements.table
        extra = [name for name in ("item_id", "grade") if name in table.column_names]
        queries = Source(judgements.path, table.drop_columns(extra))
    return Raw(found["catalogue"], queries, judgements, dict(sources.grades))


def _column_map(columns: dict[str, str], file: str) -> dict[str, str]:
    """Ours → theirs in one file: what has a meaning in it, by its own name unless mapped, and mapped payload.

    `judgements/item_id` maps a column of that file alone.

    >>> _column_map({"item_id": "id", "judgements/item_id": "sku", "brand": "maker"}, "judgements")["item_id"]
    'sku'
    """
    shared = {ours: theirs for ours, theirs in columns.items() if "/" not in ours}
    own = {ours.removeprefix(f"{file}/"): theirs for ours, theirs in columns.items() if ours.startswith(f"{file}/")}
    mapped = {
        ours: theirs for ours, theirs in (shared | own).items() if ours in MEANINGS[file] or ours not in ALL_MEANINGS
    }
    return {name: name for name in sorted(MEANINGS[file])} | mapped


def _all_found(columns: dict[str, str], read: dict[str, Source]) -> None:
    """A mapped name that no file has is a slip: else a mistyped `grade` would turn judgements into clicks."""
    for ours, theirs in columns.items():
        file, _, name = ours.rpartition("/")
        if file and file not in MEANINGS:
            raise DataError(f"sources.columns.{ours}: there is no '{file}': name one of {', '.join(MEANINGS)}")
        asked = [read[f] for f in read if file in ("", f) and _column_map(columns, f).get(name) == theirs]
        names = sorted({found for source in asked for found in source.table.column_names})
        if asked and theirs not in names:
            where = " and ".join(source.path for source in asked)
            raise missing(where, theirs, names, f"set sources.columns.{ours} to the name it has there")


def _renamed(source: Source, file: str, columns: dict[str, str]) -> Source:
    """Columns under our names first; a column of theirs that has our name but another meaning gives way."""
    names = source.table.column_names
    mapped = {ours: theirs for ours, theirs in _column_map(columns, file).items() if theirs in names}
    # one map serves several files: where the mapped name is not in this one, ours may be
    mapped |= {ours: ours for ours in MEANINGS[file] if ours not in mapped and ours in names}
    taken = {*mapped, *mapped.values()}
    rest = {name: name for name in names if name not in taken}
    return Source(source.path, pa.table({ours: source.table[theirs] for ours, theirs in (mapped | rest).items()}))


def _need(source: Source, name: str, remedy: str | None = None) -> None:
    if name not in source.table.column_names:
        remedy = remedy or f"set sources.columns.{name} to the name it has there"
        raise missing(source.path, name, source.table.column_names, remedy)


def _items(source: Source, counts: dict[str, int]) -> pa.Table:
    for name in ITEMS.names:
        _need(source, name)
    table = _ids_filled(_as_texts(source, ITEMS.names), source.path, "item_id")
    titled = table.filter(_filled(table["title"]))
    counts["items without a title"] = table.num_rows - titled.num_rows
    kept = titled.filter(_first_of(_codes(titled["item_id"])[0]))
    counts["items repeated"] = titled.num_rows - kept.num_rows
    if kept.num_rows == 0:
        raise DataError(f"{source.path} has no item with a title: at least one is needed")
    counts["items"] = kept.num_rows
    return _led_by(kept, ITEMS.names)


def _queries(source: Source, counts: dict[str, int]) -> pa.Table:
    _need(source, "query")
    named = "query_id" in source.table.column_names
    table = _as_texts(source, QUERIES.names if named else ["query"])
    if named:
        table = _ids_filled(table, source.path, "query_id")
    asked = table.filter(_filled(table["query"]))
    counts["queries blank"] = table.num_rows - asked.num_rows
    if asked.num_rows == 0:
        raise DataError(f"{source.path} has no query that is not blank: at least one is needed")
    stripped = pc.utf8_trim_whitespace(asked["query"])
    asked = asked.set_column(asked.column_names.index("query"), "query", stripped)
    kept = (_by_id if named else _by_text)(asked, _folded(stripped), source.path)
    counts["queries repeated"] = asked.num_rows - kept.num_rows
    counts["queries"] = kept.num_rows
    return _led_by(kept, QUERIES.names)


def _by_id(table: pa.Table, folded: np.ndarray, path: str) -> pa.Table:
    """The first row of each id, whose text must not change."""
    codes, _ = _codes(table["query_id"])
    _, first = np.unique(codes, return_index=True)
    other = np.flatnonzero(folded != folded[first[codes]])
    if len(other):
        row = int(other[0])
        texts = [table["query"][i].as_py() for i in (int(first[codes[row]]), row)]
        raise DataError(
            f"{path}: query_id '{table['query_id'][row]}' has two texts, '{texts[0]}' and '{texts[1]}': give each text "
            "its own id, or leave out the ids and they are made of the texts"
        )
    return table.filter(_first_of(codes))


def _by_text(table: pa.Table, folded: np.ndarray, path: str) -> pa.Table:
    """The first row of each text, how often it was asked, and its id: the hexadecimal `query_identity`."""
    times = np.ones(table.num_rows, dtype=np.int64)
    if "count" in table.column_names:  # the log was added up before
        try:
            times = pc.fill_null(table["count"].cast(pa.int64()), 1).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{path}: 'count' is not whole numbers ({error}): repair or rename the column") from error
        table = table.drop_columns(["count"])
    _, codes = np.unique(folded, return_inverse=True)
    sums = np.zeros(codes.max() + 1, dtype=np.int64)
    np.add.at(sums, codes, times)
    first = _first_of(codes)
    kept = table.filter(first).append_column("count", pa.array(sums[codes[first]]))
    return kept.append_column("query_id", pa.array([f"{value:016x}" for value in folded[first].tolist()], TEXT))


def _qrels(
    source: Source, by_id: bool, grades: dict[str, int], items: pa.Table, queries: pa.Table, counts: dict[str, int]
) -> pa.Table:
    """by_id: whether the ids of the queries are the file's own, else judgements name them by text alone."""
    _need(source, "item_id")
    key = "query_id" if by_id and "query_id" in source.table.column_names else "query"
    if key == "query":
        _need(
            source, "query", "as the queries have no ids of their own, set sources.columns.query to the text's column"
        )
    pairs = _as_texts(source, [key, "item_id"]).select([key, "item_id"]).append_column("grade", _grades(source, grades))
    if key == "query":
        pairs = _with_ids(pairs, queries)
    known = pairs.filter(pc.is_in(pairs["query_id"], value_set=queries["query_id"]))
    counts["qrels of unknown queries"] = pairs.num_rows - known.num_rows
    usable = known.filter(pc.is_in(known["item_id"], value_set=items["item_id"]))
    counts["qrels of unknown items"] = known.num_rows - usable.num_rows
    if usable.num_rows == 0:
        raise DataError(
            f"{source.path}: none of {pairs.num_rows} pairs has a query and an item that are both known: "
            f"see that '{key}' and 'item_id' hold what the queries and the catalogue hold (sources.columns)"
        )
    best = usable.group_by(["query_id", "item_id"], use_threads=False).aggregate([("grade", "max")])  # keeps the order
    counts["qrels repeated"] = usable.num_rows - best.num_rows
    counts["qrels"] = best.num_rows
    return best.rename_columns(QRELS.names).cast(QRELS)


def _with_ids(pairs: pa.Table, queries: pa.Table) -> pa.Table:
    """`query_id` by the folded text, null where nobody asked it; every id of a text that has several."""
    ids: dict[int, list[str | None]] = {}
    for text, query_id in zip(_folded(queries["query"]).tolist(), queries["query_id"].to_pylist(), strict=True):
        ids.setdefault(text, []).append(query_id)
    found = [ids.get(text, [None]) for text in _folded(pairs["query"]).tolist()]
    rows = np.repeat(np.arange(len(found)), [len(some) for some in found])
    flat = pa.array([query_id for some in found for query_id in some], TEXT)
    return pairs.take(pa.array(rows)).append_column("query_id", flat)


def _grades(source: Source, grades: dict[str, int]) -> pa.Array:
    """[N] int64: labels by the map, whole numbers by themselves; 1 where there is no such column."""
    names = source.table.column_names
    if "grade" not in names:
        like = [name for name in names if LABELS & set(re.split("[^a-z]+", name.lower()))]
        if like:
            remedy = f"set sources.columns.grade to '{like[0]}', or rename it if the pairs are clicks"
            raise DataError(f"{source.path} has no column 'grade', but '{like[0]}': {remedy}")
        return pa.array(np.ones(source.table.num_rows, dtype=np.int64))
    column = _as_texts(source, ["grade"])["grade"]
    if column.null_count:
        row = pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{source.path}: 'grade' is null in row {row}: fill it or drop the row")
    codes, labels = _codes(column)
    mapped = {_number_or_text(label): grade for label, grade in grades.items()}
    return pa.array(np.array([_grade(label, mapped, source.path) for label in labels], dtype=np.int64)[codes])


def _number_or_text(label: str) -> float | str:
    """So that "0.10" and 0.1 are one label.

    >>> _number_or_text("0.10"), _number_or_text(" E ")
    (0.1, 'E')
    """
    try:
        return float(label)
    except ValueError:
        return label.strip()


def _grade(label: str, mapped: dict[float | str, int], path: str) -> int:
    value = _number_or_text(label)
    example = f"map it, as in sources.grades: {{'{label}': 1}}"
    if value in mapped:
        grade = mapped[value]
    elif value in ("true", "false"):
        grade = int(value == "true")
    elif isinstance(value, str):
        raise DataError(f"{path}: the label '{label}' is neither a number nor in sources.grades: {example}")
    elif not value.is_integer():
        raise DataError(f"{path}: the grade {label} is not a whole number: {example}")
    else:
        grade = int(value)
    if grade < 0:
        raise DataError(f"{path}: the grade of '{label}' is {grade}, below 0: {example}")
    return grade


def _as_texts(source: Source, names: list[str]) -> pa.Table:
    table = source.table
    for name in names:
        table = table.set_column(table.column_names.index(name), name, _as_text(table[name], name, source.path))
    return table


def _as_text(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """Numbers as text; whole ones without ".0": pandas makes decimals of ids beside an empty cell."""
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    try:
        if pa.types.is_floating(column.type) and pc.all(pc.equal(pc.floor(column), column)).as_py():
            column = column.cast(pa.int64())
        return column.cast(TEXT)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: '{name}' is {column.type}, which is no text ({error}): convert it") from error


def _filled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(column), ""), False)


def _ids_filled(table: pa.Table, path: str, name: str) -> pa.Table:
    row = pc.index(_filled(table[name]), False).as_py()
    if row >= 0:
        raise DataError(f"{path}: '{name}' is empty in row {row}: fill it or drop the row")
    return table


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Each value as a place in the list of the different ones. column: [N], without nulls. Returns: [N] int, [K]."""
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def _first_of(codes: np.ndarray) -> np.ndarray:
    """[N] bool: where each code is met for the first time.

    >>> _first_of(np.array([2, 2, 0])).tolist()
    [True, False, True]
    """
    mask = np.zeros(len(codes), dtype=bool)
    mask[np.unique(codes, return_index=True)[1]] = True
    return mask


def _folded(texts: pa.ChunkedArray) -> np.ndarray:
    """Identities of queries, [N] int64, of a text or null each."""
    codes, different = _codes(pc.fill_null(texts, ""))
    return np.array([query_identity(text) for text in different], dtype=np.int64)[codes]


def _led_by(table: pa.Table, names: list[str]) -> pa.Table:
    return table.select([*names, *(name for name in table.column_names if name not in names)])
