"""Import: from the files of a shop or a published data set to the clean tables that every stage reads."""

from typing import NamedTuple

import pyarrow as pa

from lrem.config import SourcesConfig
from lrem.curation.column_mapping import read_mapped_tables
from lrem.curation.published_datasets import DATASET_READERS
from lrem.curation.qrels_cleaning import clean_qrels
from lrem.curation.table_cleaning import clean_items, clean_queries
from lrem.data.schema import QUERIES


class ImportedTables(NamedTuple):
    """The tables of every stage (`lrem.data.schema`: ITEMS, QUERIES, QRELS), and the number of dropped rows."""

    items: pa.Table
    queries: pa.Table
    qrels: pa.Table | None
    counts: dict[str, int]


def import_tables(sources: SourcesConfig) -> ImportedTables:
    """Read and clean what `sources` names.

    items: item_id (unique), title (not blank), payload.
    queries: query_id (unique), query (stripped, not blank), payload. A log without ids gets `count`, and ids that are
    hashes of the text without case and spacing. Without a file of queries, the texts in the judgements are used;
    without either, the table is empty.
    qrels: query_id, item_id, grade ≥ 0, both ids known, each pair once with its highest grade. Without a grade column
    each pair is a click of grade 1. None without judgements.

    Raises:
        DataError: a file, column or setting is missing; an id is null; one id has two texts; a label has no grade; no
            usable row remains. The message names the file, the row or value, and the remedy.
    """
    reader = DATASET_READERS.get(sources.format, read_mapped_tables)
    raw = reader(sources)
    counts: dict[str, int] = {}
    items = clean_items(raw.items, counts)
    queries = QUERIES.empty_table() if raw.queries is None else clean_queries(raw.queries, counts)
    qrels = None
    if raw.judgements is not None and raw.queries is not None:
        queries_have_ids = "query_id" in raw.queries.table.column_names
        qrels = clean_qrels(raw.judgements, queries_have_ids, raw.grades, items, queries, counts)
    return ImportedTables(items, queries, qrels, counts)
