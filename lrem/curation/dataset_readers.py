"""How a catalogue, queries and judgements lie in files: any table by its ending, and three published data sets.

Knows files, layouts and the names of columns; does not know which rows are fit for use: `lrem.curation.sources` does.
"""

import difflib
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem

from lrem.config import SourcesConfig
from lrem.errors import DataError

KINDS = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "json", ".json": "json"}
COMPRESSED = {".gz", ".bz2", ".zst"}  # pyarrow unpacks these as it reads
WHOLE = r"^-?(0|[1-9][0-9]{0,17})$"  # of 18 digits at most, without leading zeros: a barcode stays text
DECIMAL = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$"
ESCI = "shopping_queries_dataset"


class Source(NamedTuple):
    """A table in our column names, its values as they were read, and what an error calls it."""

    path: str
    table: pa.Table


class Raw(NamedTuple):
    """What a reader hands on. judgements: query_id or query, item_id, and perhaps grade, which may be a label."""

    items: Source
    queries: Source | None
    judgements: Source | None
    grades: dict[str, int]


def read_any(
    path: str, text: Collection[str] = (), delimiter: str = ",", keep: tuple[str, str] | None = None
) -> pa.Table:
    """Read parquet, CSV, TSV or JSON lines by the file's ending: a file, a folder of files of one kind, or a URI.

    Text that is wholly numbers or true and false becomes such (CSV and TSV). Categories and large strings become
    strings, as every later stage expects.

    Args:
        text: columns of CSV and TSV that stay text, as ids are: `007` is not 7.
        delimiter: of CSV.
        keep: column and value: of parquet only the rows that have it.

    Raises:
        DataError: nothing is there, the ending is unknown, the content is not what the ending says, or the files of a
            folder do not fit each other.
    """
    system, names = _files(path)
    kinds = {_kind(name) for name in names}
    if len(kinds) > 1:
        raise DataError(f"{path} holds files of several kinds ({', '.join(sorted(kinds))}): pass a folder of one kind")
    [kind] = kinds
    tables = [_parse(system, name, kind, delimiter, keep) for name in names]
    for table in tables:
        twice = [name for name, times in Counter(table.column_names).items() if times > 1]
        if twice:
            raise DataError(f"{path} has two columns '{twice[0]}': rename one")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"the files in {path} have columns of different types ({error}): write them alike") from error
    typed = kind in ("csv", "tsv")
    columns = {
        name: _typed(table[name]) if typed and name not in text else _plain(table[name]) for name in table.column_names
    }
    return pa.table(columns)


def _files(path: str) -> tuple[FileSystem, list[str]]:
    try:
        system, inner = _located(path)
        found = system.get_file_info(inner)
        inside = system.get_file_info(FileSelector(inner, recursive=True)) if found.type == FileType.Directory else []
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be opened ({error}): check the address and your right to read it") from error
    if found.type == FileType.NotFound:
        raise DataError(f"{path} does not exist: pass another path")
    if found.type == FileType.File:
        _kind(inner)
        return system, [inner]
    # Spark and its like leave _SUCCESS, _temporary/ and .part.crc beside the data
    names = [info.path for info in inside if info.type == FileType.File and _suffix(info.path) in KINDS]
    names = [
        name
        for name in names
        if not any(part[0] in "._" for part in PurePosixPath(name[len(inner) :].strip("/")).parts)
    ]
    if not names:
        raise DataError(f"{path} holds no file that ends in {', '.join(KINDS)}: pass another folder")
    return system, sorted(names)


def _located(path: str) -> tuple[FileSystem, str]:
    if "://" in path:
        return tuple(FileSystem.from_uri(path))
    return LocalFileSystem(), str(Path(path).expanduser().absolute())


def _suffix(name: str) -> str:
    """`.csv` of `a/log.csv.gz`."""
    path = PurePosixPath(name)
    return (PurePosixPath(path.stem) if path.suffix in COMPRESSED else path).suffix.lower()


def _kind(name: str) -> str:
    if _suffix(name) not in KINDS:
        raise DataError(f"{name}: the ending '{_suffix(name)}' is not known: convert it to one of {', '.join(KINDS)}")
    return KINDS[_suffix(name)]


def _parse(system: FileSystem, name: str, kind: str, delimiter: str, keep: tuple[str, str] | None) -> pa.Table:
    try:
        if kind == "parquet":
            filters = [(keep[0], "=", keep[1])] if keep else None
            return pq.read_table(name, filesystem=system, filters=filters, partitioning=None)
        if kind == "json":
            return _json(system, name)
        return _csv(system, name, "\t" if kind == "tsv" else delimiter)
    except (pa.ArrowInvalid, OSError, EOFError) as error:
        hint = "; a clone needs `git lfs pull` first" if kind == "parquet" else ""
        raise DataError(f"{name} is not readable as {kind} ({error}): repair or fetch it{hint}") from error


def _csv(system: FileSystem, name: str, delimiter: str) -> pa.Table:
    """All as text: pyarrow guesses types from the first block, and a later row that differs would be an error."""
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    read = pa.csv.ReadOptions(block_size=1 << 24)  # a row must fit in a block
    with system.open_input_stream(name) as stream, pa.csv.open_csv(stream, read, parse) as opened:
        types = dict.fromkeys(opened.schema.names, pa.string())
    with system.open_input_stream(name) as stream:
        return pa.csv.read_csv(stream, read, parse, pa.csv.ConvertOptions(column_types=types))


def _json(system: FileSystem, name: str) -> pa.Table:
    """Python's parser, as pyarrow's turns text that looks like a date into one and refuses `1` beside `"a"`."""
    rows = []
    for number, line in _lines(system, name):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{name}, line {number} is not JSON ({error}): write one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{name}, line {number} is not a JSON object: write one object a line")
        rows.append(row)
    names = dict.fromkeys(key for row in rows for key in row)
    return pa.table({key: _array([row.get(key) for row in rows]) for key in names})


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (ValueError, TypeError, OverflowError):  # mixed types, numbers beyond int64, half a surrogate pair
        texts = (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values)
        cleaned = (text.encode("utf-8", "replace").decode() for text in texts)
        return pa.array([None if value is None else text for value, text in zip(values, cleaned, strict=True)])


def _lines(system: FileSystem, name: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1; only \\n ends one: texts hold U+2028 and its like."""
    try:
        with system.open_input_stream(name) as stream:
            for number, line in enumerate(io.TextIOWrapper(stream, "utf-8-sig", newline="\n"), 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 ({error}): convert it") from error


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text as numbers or truth values where all of it is, empty cells as null; else as it is."""
    filled = pc.not_equal(column, "")
    values = pc.if_else(filled, column, pa.scalar(None, pa.string()))
    if values.null_count == len(values):
        return column
    for pattern, wanted in (
        (WHOLE, pa.int64()),
        (DECIMAL, pa.float64()),
        ("^([Tt]rue|[Ff]alse|TRUE|FALSE)$", pa.bool_()),
    ):
        if pc.all(pc.match_substring_regex(values, pattern)).as_py():
            return values.cast(wanted)
    return column


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    wanted = _plain_type(column.type)
    return column if column.type == wanted else column.cast(wanted)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def missing(path: str, name: str, names: list[str], remedy: str) -> DataError:
    """The error of a column that is not there, with the nearest that is."""
    near = difflib.get_close_matches(name, names, n=1)
    perhaps = f", perhaps '{near[0]}'" if near else ""
    return DataError(f"{path} has no column '{name}' (it has {names}): {remedy}{perhaps}")


def pick(source: Source, ours: Mapping[str, str]) -> Source:
    """Only the columns of a layout, renamed. ours: our name → theirs.

    Raises:
        DataError: a column is missing.
    """
    names = source.table.column_names
    for theirs in ours.values():
        if theirs not in names:
            raise missing(source.path, theirs, names, "this is not the published file; use format table or rename")
    return Source(source.path, pa.table({name: source.table[theirs] for name, theirs in ours.items()}))


def _unpacked(sources: SourcesConfig, inside: str, known: str) -> str:
    """The folder that holds `known`: the one given, or the one `inside` it if that is a clone of the repository."""
    only_table = [name for name in ("catalogue", "queries", "judgements", "columns") if getattr(sources, name)]
    if only_table:
        raise DataError(f"format {sources.format} knows its files: remove sources.{only_table[0]} or set format table")
    if sources.folder is None:
        raise DataError(f"format {sources.format} needs sources.folder: set it to the unpacked data set")
    folder = sources.folder.rstrip("/")
    return f"{folder}/{inside}" if exists(f"{folder}/{inside}/{known}") else folder


def exists(path: str) -> bool:
    """Whether a file is there, local or behind a URI."""
    system, inner = _located(path)
    return bool(system.get_file_info(inner).type == FileType.File)


def esci(sources: SourcesConfig) -> Raw:
    """Amazon's Shopping Queries Dataset (github.com/amazon-science/esci-data), the rows of one locale.

    The default grades are the gains of its ranking task (KDD Cup 2022: 1, 0.1, 0.01, 0) times 100. That task uses the
    queries whose `small_version` is 1. The file of sources may lack.

    Raises:
        DataError: a file or column is missing; of several locales none is chosen, or one that is not there.
    """
    folder = _unpacked(sources, ESCI, f"{ESCI}_examples.parquet")
    path = f"{folder}/{ESCI}_examples.parquet"
    examples = read_any(path)
    locales = sorted(set(pick(Source(path, examples), {"locale": "product_locale"}).table["locale"].to_pylist()))
    locale = sources.locale or locales[0]
    if locale not in locales or (sources.locale is None and len(locales) > 1):
        raise DataError(f"{path} holds the locales {', '.join(locales)}: set sources.locale to one of them")
    source = Source(path, examples.filter(pc.equal(examples["product_locale"], locale)))
    queries = pick(source, {name: name for name in ("query_id", "query", "split", "small_version")})
    named = f"{folder}/{ESCI}_sources.csv"
    if exists(named):
        table = pick(Source(named, read_any(named)), {"query_id": "query_id", "source": "source"}).table
        where = pc.index_in(queries.table["query_id"], value_set=table["query_id"].cast(queries.table["query_id"].type))
        queries = Source(path, queries.table.append_column("source", table["source"].take(where)))
    products = f"{folder}/{ESCI}_products.parquet"
    payload = {"description": "description", "bullet_points": "bullet_point", "brand": "brand", "color": "color"}
    columns = {"item_id": "product_id", "title": "product_title"} | {k: f"product_{v}" for k, v in payload.items()}
    items = pick(Source(products, read_any(products, keep=("product_locale", locale))), columns)
    judgements = pick(source, {"query_id": "query_id", "item_id": "product_id", "grade": "esci_label"})
    return Raw(items, queries, judgements, {"E": 100, "S": 10, "C": 1, "I": 0} | sources.grades)


def wands(sources: SourcesConfig) -> Raw:
    """Wayfair's WANDS (github.com/wayfair/WANDS): three files named .csv, separated by tabs and quoted.

    `category` is the path of `category hierarchy`; its parts are divided by " / ", while a part may hold a bare "/".
    The readme calls that column category_hierarchy, the file does not.

    Raises:
        DataError: a file or column is missing.
    """
    folder = _unpacked(sources, "dataset", "product.csv")
    text = ("product_name", "query", "label", "category hierarchy", "product_description", "product_features")
    product, query, label = (
        Source(path, read_any(path, text, "\t"))
        for path in (f"{folder}/{name}.csv" for name in ("product", "query", "label"))
    )
    same = ("product_class", "product_features", "rating_count", "average_rating", "review_count")
    columns = {"item_id": "product_id", "title": "product_name", "category": "category hierarchy"}
    items = pick(product, columns | {"description": "product_description"} | {name: name for name in same})
    paths = [
        [part.strip() for part in path.split(" / ") if part.strip()] for path in items.table["category"].to_pylist()
    ]
    place = items.table.column_names.index("category")
    table = items.table.set_column(place, "category", pa.array(paths, pa.list_(pa.string())))
    return Raw(
        Source(items.path, table),
        pick(query, {"query_id": "query_id", "query": "query", "category": "query_class"}),
        pick(label, {"query_id": "query_id", "item_id": "product_id", "grade": "label"}),
        {"Exact": 2, "Partial": 1, "Irrelevant": 0} | sources.grades,
    )


def multi_cpr(sources: SourcesConfig) -> Raw:
    """Multi-CPR, a domain's folder (github.com/Alibaba-NLP/Multi-CPR, data/ecom): lines of fields, never quoted.

    Queries of train.query.txt get split "train", those of dev.query.txt "test".

    Raises:
        DataError: a file is missing, or a line lacks a field.
    """
    folder = _unpacked(sources, "data/ecom", "corpus.tsv")
    queries, judgements = [], []
    for part, split in (("train", "train"), ("dev", "test")):
        table = _fields(f"{folder}/{part}.query.txt", ("query_id", "query"))
        queries.append(table.append_column("split", pa.array([split] * len(table), pa.string())))
        judgements.append(_fields(f"{folder}/qrels.{part}.tsv", ("query_id", "iteration", "item_id", "grade")))
    return Raw(
        Source(f"{folder}/corpus.tsv", _fields(f"{folder}/corpus.tsv", ("item_id", "title"))),
        Source(f"{folder}/*.query.txt", pa.concat_tables(queries)),
        Source(f"{folder}/qrels.*.tsv", pa.concat_tables(judgements)),
        dict(sources.grades),
    )


def _fields(path: str, names: tuple[str, ...]) -> pa.Table:
    """Lines of fields between tabs, as text; further tabs belong to the last field."""
    system, inner = _located(path)
    if not exists(path):
        raise DataError(f"{path} does not exist: set sources.folder to the folder that holds it")
    rows: list[list[str]] = []
    for number, line in _lines(system, inner):
        rows.append(line.split("\t", len(names) - 1))
        if len(rows[-1]) < len(names):
            raise DataError(f"{path}, line {number} has {len(rows[-1])} fields, not {len(names)}: repair or fetch it")
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)})


READERS = {"esci": esci, "wands": wands, "multi_cpr": multi_cpr}
