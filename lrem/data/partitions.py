"""Columns that are written as folders, as Hive and Spark do: `brand=acme/part-0.parquet`."""

from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

import pyarrow as pa

from lrem.errors import DataError

NULL = "__HIVE_DEFAULT_PARTITION__"


def partition_values(file: str, folder: str) -> dict[str, str | None]:
    """Return the column → value pairs in the path of a file below `folder`.

    >>> partition_values("shop/brand=T%26G/year=2024/p.parquet", "shop")
    {'brand': 'T&G', 'year': '2024'}
    """
    parts = PurePosixPath(file).relative_to(folder).parts[:-1] if file != folder else ()
    pairs = (part.partition("=") for part in parts)
    return {unquote(name): None if value == NULL else unquote(value) for name, equals, value in pairs if equals}


def partition_schema(files: Sequence[str], folder: str) -> pa.Schema:
    """Return the columns in the paths of files: int64 if each value is written as an integer is, else text.

    >>> partition_schema(["shop/code=007/p", "shop/year=2024/code=12/p"], "shop")
    code: string
    year: int64
    """
    values: dict[str, list[str]] = {}
    for file in files:
        for name, value in partition_values(file, folder).items():
            values.setdefault(name, []).extend([value] if value is not None else [])
    return pa.schema((name, _type(texts)) for name, texts in values.items())


def columns_to_add(in_paths: pa.Schema, columns: Sequence[Collection[str]], folder: str) -> pa.Schema:
    """Return the columns that only the paths have. Where the files have a column themselves, theirs is read.

    Args:
        in_paths: the columns in the paths. columns: the names of each file's columns.

    Raises:
        DataError: some files have a column that only the paths of the others name.
    """
    for name in in_paths.names:
        if 0 < sum(name in names for names in columns) < len(columns):
            raise DataError(
                f"{folder}: '{name}' is a column of some files, and of others only in their path ({name}=…): write it "
                "into all files or into none"
            )
    return pa.schema(field for field in in_paths if not any(field.name in names for names in columns))


def _type(texts: list[str]) -> pa.DataType:
    whole = [text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 19 for text in texts]
    return pa.int64() if texts and all(whole) and all(str(int(text)) == text for text in texts) else pa.string()
