"""Format `table`: files with any column names, mapped to ours by `sources.columns`."""

import pyarrow as pa

from lrem.config import SourcesConfig
from lrem.curation.source_table import RawDataset, SourceTable, missing_column_error
from lrem.curation.table_files import read_table_files
from lrem.curation.text_formats import TextFormat
from lrem.errors import DataError

# The columns with a meaning in each file; any other mapped name is payload.
KNOWN_COLUMNS = {
    "catalogue": {"item_id", "title"},
    "queries": {"query_id", "query"},
    "judgements": {"query_id", "query", "item_id", "grade"},
}
ALL_KNOWN_COLUMNS = set().union(*KNOWN_COLUMNS.values())


def read_mapped_tables(sources: SourcesConfig) -> RawDataset:
    """Read each file in the format of its suffix, and rename its columns.

    Raises:
        DataError: a file, column or setting is missing.
    """
    for_datasets = [name for name in ("folder", "locale") if getattr(sources, name) is not None]
    if for_datasets:
        raise DataError(f"format table does not use sources.{for_datasets[0]}: remove it, or set sources.format")
    if sources.catalogue is None:
        raise DataError("format table needs sources.catalogue: set it to a file of items")
    paths = {"catalogue": sources.catalogue, "queries": sources.queries, "judgements": sources.judgements}
    files = {file: _read(sources, file, path) for file, path in paths.items() if path is not None}
    _check_mapping(sources.columns, files)
    _check_numbers(sources.numbers, files)
    renamed = {file: _rename_columns(source, file, sources.columns) for file, source in files.items()}
    queries, judgements = renamed.get("queries"), renamed.get("judgements")
    if queries is None and judgements is not None:
        require_column(judgements, "query", "set sources.queries, or sources.columns.query to its name")
        table = judgements.table
        extra = [name for name in ("item_id", "grade") if name in table.column_names]
        queries = SourceTable(judgements.path, table.drop_columns(extra))
    return RawDataset(renamed["catalogue"], queries, judgements, dict(sources.grades))


def _read(sources: SourcesConfig, file: str, path: str) -> SourceTable:
    columns = _column_map(sources.columns, file)
    ids = tuple(theirs for ours, theirs in columns.items() if ours in ("item_id", "query_id"))
    text = TextFormat(sources.delimiter or ",", sources.encoding or "utf-8", ids)
    return SourceTable(path, read_table_files(path, columns.values(), text, sources.numbers))


def require_column(source: SourceTable, name: str, remedy: str | None = None) -> None:
    """Check that a table has a column.

    Raises:
        DataError: it does not; the message ends with `remedy`.
    """
    if name not in source.table.column_names:
        remedy = remedy or f"set sources.columns.{name} to the name it has there"
        raise missing_column_error(source.path, name, source.table.column_names, remedy)


def _column_map(columns: dict[str, str], file: str) -> dict[str, str]:
    """Return our name → the file's name: of known columns (the same name unless mapped) and of mapped payload.

    `judgements/item_id` maps a column of that file alone.

    >>> _column_map({"item_id": "id", "judgements/item_id": "sku", "brand": "maker"}, "judgements")["item_id"]
    'sku'
    """
    shared = {ours: theirs for ours, theirs in columns.items() if "/" not in ours}
    own = {ours.removeprefix(f"{file}/"): theirs for ours, theirs in columns.items() if ours.startswith(f"{file}/")}
    mapped = {
        ours: theirs
        for ours, theirs in (shared | own).items()
        if ours in KNOWN_COLUMNS[file] or ours not in ALL_KNOWN_COLUMNS
    }
    return {name: name for name in sorted(KNOWN_COLUMNS[file])} | mapped


def _check_mapping(columns: dict[str, str], files: dict[str, SourceTable]) -> None:
    """Refuse a mapped name that no file has: a mistyped `grade` would turn judgements into clicks."""
    for ours, theirs in columns.items():
        only_file, _, name = ours.rpartition("/")
        if only_file and only_file not in KNOWN_COLUMNS:
            raise DataError(f"sources.columns.{ours}: there is no '{only_file}': use one of {', '.join(KNOWN_COLUMNS)}")
        targets = [
            source
            for file, source in files.items()
            if only_file in ("", file) and _column_map(columns, file).get(name) == theirs
        ]
        names = sorted({column for source in targets for column in source.table.column_names})
        if targets and theirs not in names:
            paths = " and ".join(source.path for source in targets)
            raise missing_column_error(paths, theirs, names, f"set sources.columns.{ours} to the name it has there")


def _check_numbers(numbers: list[str], files: dict[str, SourceTable]) -> None:
    names = sorted({column for source in files.values() for column in source.table.column_names})
    for column in numbers:
        if column not in names:
            paths = " and ".join(source.path for source in files.values())
            raise missing_column_error(paths, column, names, "set sources.numbers to names of your columns")


def _rename_columns(source: SourceTable, file: str, columns: dict[str, str]) -> SourceTable:
    """Put the columns with our names first; drop a column that has one of our names but another meaning."""
    names = source.table.column_names
    mapped = {ours: theirs for ours, theirs in _column_map(columns, file).items() if theirs in names}
    # One map serves several files: if this file lacks the mapped name, it may have ours.
    mapped |= {ours: ours for ours in KNOWN_COLUMNS[file] if ours not in mapped and ours in names}
    taken = {*mapped, *mapped.values()}
    rest = {name: name for name in names if name not in taken}
    return SourceTable(source.path, pa.table({ours: source.table[theirs] for ours, theirs in (mapped | rest).items()}))
