"""Helpers for tests of imports: write small source files, read imported tables as rows."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lrem.curation.sources import ImportedTables

Rows = list[dict[str, Any]]


def write_text(path: Path, content: str) -> str:
    """Write text without translating newlines; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return str(path)


def write_rows(path: Path, rows: Rows) -> str:
    """Write a parquet file; return its path."""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def rows_of(imported: ImportedTables) -> tuple[Rows, Rows, Rows]:
    """Return the rows of items, queries and qrels."""
    qrels = imported.qrels
    return imported.items.to_pylist(), imported.queries.to_pylist(), [] if qrels is None else qrels.to_pylist()
