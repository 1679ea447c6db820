"""The file layouts of three published data sets: ESCI, WANDS and Multi-CPR."""

import pyarrow as pa
import pyarrow.compute as pc

from lrem.config import SourcesConfig
from lrem.curation.source_table import RawDataset, SourceTable, select_columns
from lrem.curation.table_files import file_exists, locate, read_table_files
from lrem.curation.text_formats import TextFormat, read_lines
from lrem.errors import DataError

TABLE_SETTINGS = ("catalogue", "queries", "judgements", "columns", "encoding", "delimiter", "numbers")
ESCI = "shopping_queries_dataset"


def read_esci(sources: SourcesConfig) -> RawDataset:
    """Read one locale of Amazon's Shopping Queries Dataset (github.com/amazon-science/esci-data).

    The default grades are the gains of its ranking task (KDD Cup 2022: 1, 0.1, 0.01, 0) times 100. That task uses the
    queries whose `small_version` is 1. The file of query sources is optional.

    Raises:
        DataError: a file or column is missing, the locale does not exist, or it is not set and there are several.
    """
    folder = _dataset_folder(sources, ESCI, f"{ESCI}_examples.parquet")
    path = f"{folder}/{ESCI}_examples.parquet"
    examples = read_table_files(path)
    locale = _choose_locale(path, examples, sources.locale)
    source = SourceTable(path, examples.filter(pc.equal(examples["product_locale"], locale)))
    queries = select_columns(source, {name: name for name in ("query_id", "query", "split", "small_version")})
    sources_path = f"{folder}/{ESCI}_sources.csv"
    if file_exists(sources_path):
        queries = SourceTable(path, _with_query_sources(queries.table, sources_path))
    products = f"{folder}/{ESCI}_products.parquet"
    payload = {"description": "description", "bullet_points": "bullet_point", "brand": "brand", "color": "color"}
    columns = {"item_id": "product_id", "title": "product_title"} | {k: f"product_{v}" for k, v in payload.items()}
    items = select_columns(SourceTable(products, read_table_files(products, keep=("product_locale", locale))), columns)
    judgements = select_columns(source, {"query_id": "query_id", "item_id": "product_id", "grade": "esci_label"})
    return RawDataset(items, queries, judgements, {"E": 100, "S": 10, "C": 1, "I": 0} | sources.grades)


def _choose_locale(path: str, examples: pa.Table, locale: str | None) -> str:
    column = select_columns(SourceTable(path, examples), {"locale": "product_locale"}).table["locale"]
    locales = sorted(set(column.to_pylist()))
    if (locale is None and len(locales) > 1) or (locale or locales[0]) not in locales:
        raise DataError(f"{path} holds the locales {', '.join(locales)}: set sources.locale to one of them")
    return str(locale or locales[0])


def _with_query_sources(queries: pa.Table, path: str) -> pa.Table:
    columns = {"query_id": "query_id", "source": "source"}
    table = select_columns(SourceTable(path, read_table_files(path)), columns).table
    rows = pc.index_in(queries["query_id"], value_set=table["query_id"].cast(queries["query_id"].type))
    return queries.append_column("source", table["source"].take(rows))


def read_wands(sources: SourcesConfig) -> RawDataset:
    """Read Wayfair's WANDS (github.com/wayfair/WANDS): three files named .csv, tab-separated and quoted.

    `category` is the path in `category hierarchy`, split at " / "; a level may contain a bare "/". The readme of the
    data set calls that column category_hierarchy, the file does not.

    Raises:
        DataError: a file or column is missing.
    """
    folder = _dataset_folder(sources, "dataset", "product.csv")
    text = ("product_name", "query", "label", "category hierarchy", "product_description", "product_features")
    product, query, label = (
        SourceTable(path, read_table_files(path, text, TextFormat(delimiter="\t")))
        for path in (f"{folder}/{name}.csv" for name in ("product", "query", "label"))
    )
    unchanged = ("product_class", "product_features", "rating_count", "average_rating", "review_count")
    columns = {"item_id": "product_id", "title": "product_name", "category": "category hierarchy"}
    items = select_columns(
        product, columns | {"description": "product_description"} | {name: name for name in unchanged}
    )
    paths = [
        [level.strip() for level in path.split(" / ") if level.strip()] for path in items.table["category"].to_pylist()
    ]
    position = items.table.column_names.index("category")
    table = items.table.set_column(position, "category", pa.array(paths, pa.list_(pa.string())))
    return RawDataset(
        SourceTable(items.path, table),
        select_columns(query, {"query_id": "query_id", "query": "query", "category": "query_class"}),
        select_columns(label, {"query_id": "query_id", "item_id": "product_id", "grade": "label"}),
        {"Exact": 2, "Partial": 1, "Irrelevant": 0} | sources.grades,
    )


def read_multi_cpr(sources: SourcesConfig) -> RawDataset:
    """Read one domain's folder of Multi-CPR (github.com/Alibaba-NLP/Multi-CPR, data/ecom): tab-separated, never quoted.

    Queries of train.query.txt get the split "train", those of dev.query.txt "test".

    Raises:
        DataError: a file is missing, or a line has too few fields.
    """
    folder = _dataset_folder(sources, "data/ecom", "corpus.tsv")
    queries, judgements = [], []
    for part, split in (("train", "train"), ("dev", "test")):
        table = _read_fields(f"{folder}/{part}.query.txt", ("query_id", "query"))
        queries.append(table.append_column("split", pa.array([split] * len(table), pa.string())))
        judgements.append(_read_fields(f"{folder}/qrels.{part}.tsv", ("query_id", "iteration", "item_id", "grade")))
    return RawDataset(
        SourceTable(f"{folder}/corpus.tsv", _read_fields(f"{folder}/corpus.tsv", ("item_id", "title"))),
        SourceTable(f"{folder}/*.query.txt", pa.concat_tables(queries)),
        SourceTable(f"{folder}/qrels.*.tsv", pa.concat_tables(judgements)),
        dict(sources.grades),
    )


def _read_fields(path: str, names: tuple[str, ...]) -> pa.Table:
    """Read tab-separated lines as text; further tabs belong to the last field."""
    system, inner = locate(path)
    if not file_exists(path):
        raise DataError(f"{path} does not exist: set sources.folder to the folder that holds it")
    rows: list[list[str]] = []
    for number, line in read_lines(system, inner):
        rows.append(line.split("\t", len(names) - 1))
        if len(rows[-1]) < len(names):
            raise DataError(
                f"{path}, line {number} has {len(rows[-1])} fields, not {len(names)}: repair it or download it again"
            )
    return pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)})


def _dataset_folder(sources: SourcesConfig, inside: str, known_file: str) -> str:
    """Return the folder with `known_file`: sources.folder, or the folder `inside` it if it is a repository's clone."""
    for_tables = [name for name in TABLE_SETTINGS if getattr(sources, name)]
    if for_tables:
        raise DataError(
            f"format {sources.format} knows its files: remove sources.{for_tables[0]}, or set sources.format to table"
        )
    if sources.folder is None:
        raise DataError(f"format {sources.format} needs sources.folder: set it to the unpacked data set")
    folder = sources.folder.rstrip("/")
    return f"{folder}/{inside}" if file_exists(f"{folder}/{inside}/{known_file}") else folder


DATASET_READERS = {"esci": read_esci, "wands": read_wands, "multi_cpr": read_multi_cpr}
