"""Reading a table from parquet, CSV, TSV or JSON lines: a file, a folder of files, or a URI."""

import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from lrem.curation.text_formats import (
    TextFormat,
    holds_numbers,
    infer_type,
    read_csv,
    read_json_lines,
    read_tsv,
    to_numbers,
    without_point_zero,
)
from lrem.data.arrow_types import plain_table
from lrem.data.partitions import columns_to_add, partition_schema, partition_values
from lrem.errors import DataError

log = logging.getLogger(__name__)
FORMATS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "json", ".json": "json"}
COMPRESSED = {".gz", ".bz2", ".zst"}  # decompressed by pyarrow while it reads


def read_table_files(
    path: str,
    text_columns: Collection[str] = (),
    text: TextFormat = TextFormat(),
    numbers: Collection[str] = (),
    keep: tuple[str, str] | None = None,
) -> pa.Table:
    """Read a table; the suffix of each file decides its format.

    In CSV and TSV, columns that hold only truth values, or only numbers in their usual spelling, get that type.
    Folders such as `brand=acme` become columns. Dictionary-encoded and large strings become plain strings, as every
    later stage expects.

    Args:
        path: a file, a folder of files of one format, or a URI.
        text_columns: columns of CSV and TSV that stay text, such as ids: `007` is not 7.
        text: how CSV, TSV and JSON lines are written.
        numbers: text columns that are read as numbers in any spelling: `19.90`, `1E5`.
        keep: a column and a value; of parquet, only the rows with that value are read.

    Raises:
        DataError: there is nothing at `path`, the suffix is unknown, the content does not match the suffix, or the
            files of a folder do not fit together.
    """
    system, names = _list_files(path)
    formats = {_format(name) for name in names}
    if len(formats) > 1:
        raise DataError(
            f"{path} holds files of several formats ({', '.join(sorted(formats))}): pass a folder of one format"
        )
    [file_format] = formats
    folder = locate(path)[1]
    tables = [_read_file(system, name, file_format, text, keep) for name in names]
    for table in tables:
        repeated = [name for name, count in Counter(table.column_names).items() if count > 1]
        if repeated:
            raise DataError(f"{path} has two columns '{repeated[0]}': rename one")
    to_add = columns_to_add(partition_schema(names, folder), [table.column_names for table in tables], path)
    tables = [
        _with_partitions(plain_table(table), partition_values(name, folder), to_add)
        for table, name in zip(tables, names, strict=True)
    ]
    try:
        table = pa.concat_tables(_with_text_ids(tables, text_columns), promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(
            f"the files in {path} have columns of different types ({error}): write them with one schema"
        ) from error
    columns = {name: table[name] for name in table.column_names}
    for name in numbers:
        if name in columns and pa.types.is_string(columns[name].type):
            columns[name] = to_numbers(columns[name], name, path)
    if file_format in ("csv", "tsv"):
        columns |= {name: without_point_zero(columns[name]) for name in text.ids if name in columns}
        columns |= {name: _infer(columns[name], name, path) for name in columns if name not in text_columns}
    return pa.table(columns)


def _infer(column: pa.ChunkedArray, name: str, path: str) -> pa.ChunkedArray:
    """Return a column of a text file in the type of its values; say so if numbers stay text."""
    if not pa.types.is_string(column.type):  # of the path, or one of sources.numbers
        return column
    column = infer_type(column)
    if holds_numbers(column):
        log.warning(
            f"{path}: '{name}' stays text, because some of its numbers are written unusually (such as 19.90 or 1E5): "
            f"to filter it by range, set sources.numbers=[{name}]"
        )
    return column


def file_exists(path: str) -> bool:
    """Return True if `path`, local or a URI, is a file."""
    system, inner = locate(path)
    return bool(system.get_file_info(inner).type == FileType.File)


def locate(path: str) -> tuple[FileSystem, str]:
    """Return the file system of a local path or a URI, and the path within it."""
    if "://" in path:
        return tuple(FileSystem.from_uri(path))
    return LocalFileSystem(), str(Path(path).expanduser().absolute())


def _list_files(path: str) -> tuple[FileSystem, list[str]]:
    try:
        system, inner = locate(path)
        target = system.get_file_info(inner)
        entries = system.get_file_info(FileSelector(inner, recursive=True)) if target.type == FileType.Directory else []
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} cannot be opened ({error}): check the address and your permission to read it"
        ) from error
    if target.type == FileType.NotFound:
        raise DataError(f"{path} does not exist: pass another path")
    if target.type == FileType.File:
        _format(inner)
        return system, [inner]
    # Spark and similar tools write _SUCCESS, _temporary/ and .part.crc beside the data.
    names = [entry.path for entry in entries if entry.type == FileType.File and _suffix(entry.path) in FORMATS]
    names = [
        name
        for name in names
        if not any(part[0] in "._" for part in PurePosixPath(name[len(inner) :].strip("/")).parts)
    ]
    if not names:
        raise DataError(f"{path} holds no file that ends in {', '.join(FORMATS)}: pass another folder")
    return system, sorted(names)


def _suffix(name: str) -> str:
    """Return the suffix without that of compression: `.csv` for `a/log.csv.gz`."""
    path = PurePosixPath(name)
    return (PurePosixPath(path.stem) if path.suffix in COMPRESSED else path).suffix.lower()


def _format(name: str) -> str:
    if _suffix(name) not in FORMATS:
        raise DataError(f"{name} has the unknown suffix '{_suffix(name)}': convert it to one of {', '.join(FORMATS)}")
    return FORMATS[_suffix(name)]


def _read_file(
    system: FileSystem, name: str, file_format: str, text: TextFormat, keep: tuple[str, str] | None
) -> pa.Table:
    try:
        if file_format == "parquet":
            filters = [(keep[0], "=", keep[1])] if keep else None
            return pq.read_table(name, filesystem=system, filters=filters, partitioning=None)
        if file_format == "json":
            return read_json_lines(system, name, text.encoding)
        return (read_tsv if file_format == "tsv" else read_csv)(system, name, text)
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        hint = "; in a clone, run `git lfs pull` first" if file_format == "parquet" else ""
        raise DataError(
            f"{name} is not readable as {file_format} ({error}): repair it or download it again{hint}"
        ) from error


def _with_partitions(table: pa.Table, values: dict[str, str | None], types: pa.Schema) -> pa.Table:
    """Add columns of these types that the path of the table's file names."""
    for field in types:
        column = pa.array([values.get(field.name)] * table.num_rows, pa.string())
        table = table.append_column(field.name, column.cast(field.type))
    return table


def _with_text_ids(tables: list[pa.Table], text_columns: Collection[str]) -> list[pa.Table]:
    """Return the tables with those of the columns as text that are whole numbers in some tables and text in others."""
    for name in text_columns:
        kinds = [table.schema.field(name).type for table in tables if name in table.column_names]
        if pa.string() not in kinds:
            continue
        for i, table in enumerate(tables):
            if name in table.column_names and pa.types.is_integer(table.schema.field(name).type):
                tables[i] = table.set_column(table.column_names.index(name), name, table[name].cast(pa.string()))
    return tables
