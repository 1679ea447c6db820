"""The tables that stages pass to each other: column names, Arrow types, and the checks made on reading."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from pyarrow.fs import FileSystem

from lrem.data.arrow_types import plain_table, plain_type
from lrem.data.catalogue_limits import require_usable
from lrem.data.partitions import columns_to_add, partition_schema
from lrem.errors import DataError

BATCH_ROWS = 20_000  # rows read at once by `read_batches`
TEXT = pa.string()
ITEMS = pa.schema([("item_id", TEXT), ("title", TEXT)])  # every other column is payload
QUERIES = pa.schema([("query_id", TEXT), ("query", TEXT)])
QRELS = pa.schema([("query_id", TEXT), ("item_id", TEXT), ("grade", pa.int64())])
REASONINGS = pa.schema([("query_id", TEXT), ("reasoning", TEXT)])
TRIPLETS = pa.schema([("query_id", TEXT), ("query", TEXT), ("reasoning", TEXT), ("item_id", TEXT), ("title", TEXT)])
NEGATIVES = pa.schema([("negative_ids", pa.list_(TEXT)), ("negative_titles", pa.list_(TEXT))])  # optional, in triplets
RL_PAIRS = pa.schema([("query_id", TEXT), ("query", TEXT), ("item_id", TEXT), ("title", TEXT)])
# optional, in triplets, RL pairs and dev: all items known to be relevant to the query, also those without a row
RELEVANT = pa.schema([("relevant_ids", pa.list_(TEXT))])


def open_table(path: Path | str, schema: pa.Schema) -> pa.dataset.Dataset:
    """Open parquet without reading its rows: a file, a folder of files, or any URI that pyarrow knows.

    The columns of a folder are those of all its files, null where a file lacks one, and those that its path names
    (`brand=acme/`).

    Raises:
        DataError: there is nothing at `path`, a file is not parquet, a column of `schema` is missing, or a column has
            types that do not fit together.
    """
    try:
        dataset = _with_all_columns(pa.dataset.dataset(str(path), format="parquet"), str(path), schema)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: run the stage that writes it, or pass another path") from error
    except OSError as error:
        raise _unreadable_error(path, error) from error
    except (pa.ArrowInvalid, ValueError) as error:
        raise DataError(f"{path} is not readable as parquet ({error}): convert it to parquet") from error
    for name in schema.names:
        _require_column(name, dataset.schema.names, path)
    return dataset


def _with_all_columns(dataset: pa.dataset.Dataset, path: str, schema: pa.Schema) -> pa.dataset.Dataset:
    """Open a folder again with the columns of all its files: pyarrow takes those of the first."""
    folder = FileSystem.from_uri(path)[1] if "://" in path else path
    in_paths = partition_schema(dataset.files, folder)
    types: dict[str, dict[pa.DataType, None]] = {}
    fragments = dataset.get_fragments() if len(dataset.files) > 1 or in_paths else ()
    schemas = [fragment.physical_schema for fragment in fragments]
    for field in (field for one in schemas for field in one):
        types.setdefault(field.name, {})[field.type] = None
    is_uniform = all(len(kinds) == 1 for kinds in types.values())
    if is_uniform and not in_paths and types.keys() <= {*dataset.schema.names}:
        return dataset
    fields = {
        name: _common_type(name, list(dict.fromkeys(map(plain_type, kinds))), schema, path)
        for name, kinds in types.items()
    }
    partitions = columns_to_add(in_paths, [one.names for one in schemas], path)
    return pa.dataset.dataset(
        path,
        format="parquet",
        partitioning=pa.dataset.partitioning(partitions, flavor="hive"),
        schema=pa.schema([*fields.items(), *partitions]),
    )


def _common_type(name: str, types: list[pa.DataType], schema: pa.Schema, path: str) -> pa.DataType:
    if len(types) > 1 and name in schema.names:
        return schema.field(name).type
    try:
        return pa.unify_schemas([pa.schema([(name, one)]) for one in types], promote_options="permissive").field(0).type
    except pa.ArrowTypeError as error:
        raise DataError(
            f"{path}: '{name}' is {' in one file and '.join(map(str, types))} in another: write all with one schema"
        ) from error


def _unreadable_error(path: Path | str, error: OSError) -> DataError:
    if "://" in str(path):
        return DataError(
            f"{path} cannot be read ({error}): check the address, the credentials and the network, and run again; "
            "nothing was written"
        )
    return DataError(f"{path} is not readable as parquet ({error}): convert it to parquet")


def read_table(
    path: Path | str, schema: pa.Schema, keep_extra: bool = False, optional: pa.Schema | None = None
) -> pa.Table:
    """Read parquet and check it: every column of `schema`, castable, no nulls, at least one row.

    Args:
        path: a parquet file, a folder of parquet files, or a URI.
        schema: the required columns; with `keep_extra` other columns follow them unchanged.
        keep_extra: whether to keep the columns that `schema` does not name.
        optional: columns that follow if the file has them; they may have nulls.

    Raises:
        DataError: a file is missing or not parquet, a column is missing or of another type, a required value is null,
            or the table is empty.
    """
    try:
        table = open_table(path, schema).to_table()
    except OSError as error:
        raise _unreadable_error(path, error) from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not readable as one table ({error}): repair it, or write it again") from error
    columns = [_checked_column(table, field, path) for field in schema]
    present = [field for field in optional or () if field.name in table.column_names]
    columns += [_cast_column(table.column(field.name), field, path) for field in present]
    names = [*schema.names, *(field.name for field in present)]
    if keep_extra:
        extra = [name for name in table.column_names if name not in names]
        columns, names = columns + [table.column(name) for name in extra], names + extra
    if table.num_rows == 0:
        raise DataError(f"{path} has no rows: at least one is needed")
    return pa.table(dict(zip(names, columns, strict=True)))


def read_batches(path: Path | str, schema: pa.Schema, optional: tuple[str, ...] = ()) -> Iterator[pa.Table]:
    """Read parquet in batches of rows, each checked as `read_table` checks a table.

    Args:
        path: a parquet file, a folder of parquet files, or a URI.
        schema: the required columns.
        optional: further columns to read as text if the file has them.

    Raises:
        DataError: as `read_table`.
    """
    dataset = open_table(path, schema)
    extra = pa.schema([(name, TEXT) for name in optional if name in dataset.schema.names])
    rows_read = 0
    for batch in dataset.to_batches(columns=[*schema.names, *extra.names], batch_size=BATCH_ROWS):
        table = pa.Table.from_batches([batch])
        columns = {field.name: _checked_column(table, field, path, rows_read) for field in schema}
        yield pa.table(columns | {field.name: table[field.name].cast(field.type) for field in extra})
        rows_read += batch.num_rows
    if not rows_read:
        raise DataError(f"{path} has no rows: at least one is needed")


def require_unique(table: pa.Table, names: Sequence[str], path: Path | str) -> None:
    """Check that no two rows have the same values in these columns.

    Raises:
        DataError: two rows do; the message names the values.
    """
    counts = table.group_by(list(names), use_threads=False).aggregate([([], "count_all")])
    repeated = counts.filter(pc.greater(counts["count_all"], 1)).slice(0, 1).to_pylist()
    if repeated:
        raise repeated_error(path, {name: repeated[0][name] for name in names})


def repeated_error(path: Path | str, values: Mapping[str, str]) -> DataError:
    """Return the error of rows that should be one: column → the repeated value."""
    key = ", ".join(f"{name} '{value}'" for name, value in values.items())
    return DataError(f"{path}: {key} occurs more than once: keep one of the rows")


def _require_column(name: str, names: list[str], path: Path | str) -> None:
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"rename '{near[0]}'" if near else "add it"
        raise DataError(f"{path} has no column '{name}' (it has {names}): {hint}")


def _checked_column(table: pa.Table, field: pa.Field, path: Path | str, first_row: int = 0) -> pa.ChunkedArray:
    column = table.column(field.name)
    if column.null_count:
        row = first_row + pc.index(pc.is_null(column), True).as_py()
        raise DataError(f"{path}: '{field.name}' is null in row {row}: fill it or drop the row")
    return _cast_column(column, field, path)


def _cast_column(column: pa.ChunkedArray, field: pa.Field, path: Path | str) -> pa.ChunkedArray:
    try:
        return column.cast(field.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: '{field.name}' is {column.type}, not {field.type}: convert it ({error})") from error


def read_items(path: Path, check_limits: bool = True) -> pa.Table:
    """Read a catalogue: `item_id` (unique) and `title`, payload columns kept in plain types (`arrow_types`).

    Args:
        path: parquet, a file or a folder.
        check_limits: False for workers whose stage has read it already.

    Raises:
        DataError: as `read_table`; also a repeated id, or items that cannot be indexed (`catalogue_limits`).
    """
    table = plain_table(read_table(path, ITEMS, keep_extra=True))
    require_unique(table, ["item_id"], path)
    if check_limits:
        require_usable(table, path)
    return table
