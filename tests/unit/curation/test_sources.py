"""Import of small files in every format: the exact tables and counts."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lrem.config import SourcesConfig
from lrem.curation.sources import import_tables
from lrem.data.known_positives import query_identity
from lrem.data.schema import ITEMS, QRELS, QUERIES, read_items, read_table
from tests.unit.curation.helpers import rows_of, write_rows, write_text


def test_csv_with_quotes_crlf_and_a_column_map(tmp_path: Path) -> None:
    catalogue = write_text(
        tmp_path / "shop.csv",
        "\ufeffsku,name,maker,price,ean,sold\r\n"
        '007,"Sofa ""Lund"", 3\r\nseats",Möbel & Co,1299.00,0401,true\r\n'
        '008,36" vanity,,12,0402,false\r\n'
        "007,a second sofa,x,1,0403,true\r\n"
        "009,  ,x,1,0404,\r\n",
    )
    queries = write_text(
        tmp_path / "queries.tsv", "id\ttext\tsplit\nq1\t sofa  bed \ttrain\nq2\t \ttest\nq3\t沙发\ttest\n"
    )
    judged = write_text(
        tmp_path / "judged.csv",
        "query_id,sku,label\nq1,007,partly\nq1,007,yes\nq1,008,0\nq2,007,yes\nq3,009,yes\nq3,008,2.0\n",
    )
    columns = {"item_id": "sku", "title": "name", "brand": "maker", "query_id": "id", "query": "text", "grade": "label"}
    imported = import_tables(
        SourcesConfig(
            catalogue=catalogue,
            queries=queries,
            judgements=judged,
            columns=columns,
            grades={"yes": 3, "partly": 1},
            numbers=["price"],
        )
    )
    items, queries_read, qrels = rows_of(imported)
    assert items == [
        {"item_id": "007", "title": 'Sofa "Lund", 3\r\nseats', "brand": "Möbel & Co", "price": 1299.0, "ean": "0401"}
        | {"sold": True},
        {"item_id": "008", "title": '36" vanity', "brand": "", "price": 12.0, "ean": "0402", "sold": False},
    ]
    assert imported.items.schema.field("price").type == pa.float64()
    assert queries_read == [
        {"query_id": "q1", "query": "sofa  bed", "split": "train"},
        {"query_id": "q3", "query": "沙发", "split": "test"},
    ]
    assert qrels == [
        {"query_id": "q1", "item_id": "007", "grade": 3},
        {"query_id": "q1", "item_id": "008", "grade": 0},
        {"query_id": "q3", "item_id": "008", "grade": 2},
    ]
    assert imported.counts == {
        "items read": 4,
        "items without a title": 1,
        "items repeated": 1,
        "items": 2,
        "queries read": 3,
        "queries blank": 1,
        "queries repeated": 0,
        "queries": 2,
        "qrels read": 6,
        "qrels of unknown queries": 1,
        "qrels of unknown items": 1,
        "qrels repeated": 1,
        "qrels": 3,
    }


def test_imported_tables_pass_the_checks_of_every_stage(tmp_path: Path, shop: dict[str, str]) -> None:
    judged = write_text(tmp_path / "judged.csv", "query_id,item_id,grade\nq1,1,1\n")
    imported = import_tables(SourcesConfig(**shop, judgements=judged))
    for name, table in (("items", imported.items), ("queries", imported.queries), ("qrels", imported.qrels)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert read_items(tmp_path / "items.parquet") == imported.items
    assert read_table(tmp_path / "queries.parquet", QUERIES) == imported.queries
    assert read_table(tmp_path / "qrels.parquet", QRELS) == imported.qrels
    assert imported.items.schema == ITEMS


def test_json_lines_with_numbers_as_ids(tmp_path: Path) -> None:
    items = [{"id": 7, "title": "tea\u2028pot", "tags": ["a", "b"]}, {"id": "8b", "title": "cup", "made": "2024-01-02"}]
    catalogue = write_text(
        tmp_path / "items.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in items)
    )
    log = tmp_path / "log.jsonl.gz"
    log_rows = [
        {"query": "Tea  pot", "day": 1},
        {"query": "cup", "day": 1},
        {"query": "tea pot", "day": 2},
        {"query": None},
    ]
    log.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in log_rows).encode()))
    clicks = write_text(
        tmp_path / "clicks.json",
        '{"query": "TEA POT", "id": 7}\n{"query": "tea  pot", "id": 7}\n\n{"query": "spoon", "id": 7}\n'
        '{"query": "cup", "id": "8b"}\n{"query": "cup", "id": 9}\n',
    )
    imported = import_tables(
        SourcesConfig(catalogue=catalogue, queries=str(log), judgements=clicks, columns={"item_id": "id"})
    )
    pot, cup = f"{query_identity('tea pot'):016x}", f"{query_identity('cup'):016x}"
    assert rows_of(imported) == (
        [
            {"item_id": "7", "title": "tea\u2028pot", "tags": ["a", "b"], "made": None},
            {"item_id": "8b", "title": "cup", "tags": None, "made": "2024-01-02"},
        ],
        [
            {"query_id": pot, "query": "Tea  pot", "day": 1, "count": 2},
            {"query_id": cup, "query": "cup", "day": 1, "count": 1},
        ],
        [{"query_id": pot, "item_id": "7", "grade": 1}, {"query_id": cup, "item_id": "8b", "grade": 1}],
    )
    assert {name: count for name, count in imported.counts.items() if count} == {
        "items read": 2,
        "items": 2,
        "queries read": 4,
        "queries blank": 1,
        "queries repeated": 1,
        "queries": 2,
        "qrels read": 5,
        "qrels of unknown queries": 1,
        "qrels of unknown items": 1,
        "qrels repeated": 1,
        "qrels": 2,
    }


def test_parquet_folders_uris_and_types_of_other_writers(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    brand = pa.array(["Ikea", "Muji"]).dictionary_encode()
    first = {"item_id": pa.array([1, 2]), "title": pa.array(["bed", "lamp"], pa.large_string()), "brand": brand}
    pq.write_table(pa.table(first), folder / "part-0.parquet")
    path = pa.array([["home", "rug"]], pa.large_list(pa.large_string()))
    second = {"item_id": pa.array([3.0]), "title": pa.array(["rug"]), "category": path}
    pq.write_table(pa.table(second), folder / "part-1.parquet")
    write_text(folder / "_SUCCESS", "")
    write_text(folder / "_temporary" / "0" / "part-2.parquet", "half written")
    queries = write_text(tmp_path / "queries.csv", "query,count\nbed,3\nrug,\nBED,4\n")
    imported = import_tables(SourcesConfig(catalogue=folder.as_uri(), queries=Path(queries).as_uri()))
    assert imported.items.to_pylist() == [
        {"item_id": "1", "title": "bed", "brand": "Ikea", "category": None},
        {"item_id": "2", "title": "lamp", "brand": "Muji", "category": None},
        {"item_id": "3", "title": "rug", "brand": None, "category": ["home", "rug"]},
    ]
    assert [field.type for field in imported.items.schema] == [pa.string()] * 3 + [pa.list_(pa.string())]
    assert [(row["query"], row["count"]) for row in imported.queries.to_pylist()] == [("bed", 7), ("rug", 1)]
    assert imported.qrels is None


def test_ids_that_are_numbers_in_one_file_and_text_in_another_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    pq.write_table(pa.table({"item_id": [7], "title": ["coat"]}), folder / "1.parquet")
    pq.write_table(pa.table({"item_id": ["a7"], "title": ["hat"]}), folder / "2.parquet")
    imported = import_tables(SourcesConfig(catalogue=str(folder)))
    assert imported.items["item_id"].to_pylist() == read_items(folder)["item_id"].to_pylist() == ["7", "a7"]


def test_folders_named_after_values_are_columns(tmp_path: Path) -> None:
    for brand, year, row in (("acme", 2024, "1,coat"), ("T%26G", 2025, "2,hat")):
        write_text(tmp_path / f"items/brand={brand}/year={year}/part.csv", f"item_id,title\n{row}\n")
    imported = import_tables(SourcesConfig(catalogue=str(tmp_path / "items")))
    assert sorted(imported.items.to_pylist(), key=lambda row: str(row["item_id"])) == [
        {"item_id": "1", "title": "coat", "brand": "acme", "year": 2024},
        {"item_id": "2", "title": "hat", "brand": "T&G", "year": 2025},
    ]


def test_a_click_log_alone_gives_queries_and_qrels_and_a_catalogue_alone_gives_none(
    tmp_path: Path, shop: dict[str, str]
) -> None:
    clicks = write_text(tmp_path / "clicks.csv.gz", "")
    Path(clicks).write_bytes(gzip.compress(b"query,product\ncoat,1\nhat,2\nCoat,2\n"))
    columns = {"judgements/item_id": "product"}
    imported = import_tables(SourcesConfig(catalogue=shop["catalogue"], judgements=clicks, columns=columns))
    assert [(row["query"], row["count"]) for row in imported.queries.to_pylist()] == [("coat", 2), ("hat", 1)]
    ids = imported.queries["query_id"].to_pylist()
    assert imported.qrels is not None
    assert [tuple(row.values()) for row in imported.qrels.to_pylist()] == [
        (ids[0], "1", 1),
        (ids[1], "2", 1),
        (ids[0], "2", 1),
    ]
    alone = import_tables(SourcesConfig(catalogue=shop["catalogue"]))
    assert alone.queries == QUERIES.empty_table()
    assert alone.qrels is None
    assert alone.counts == {"items read": 2, "items without a title": 0, "items repeated": 0, "items": 2}


def test_judgements_by_text_apply_to_every_id_of_the_text(tmp_path: Path, shop: dict[str, str]) -> None:
    shop["queries"] = write_text(tmp_path / "twins.csv", "query_id,query\na,coat\nb,Coat\nb,COAT\nc,hat\n")
    judged = write_text(tmp_path / "judged.csv", "query,item_id,grade\ncoat,1,2\nhat,2,1\nshoe,2,1\n")
    imported = import_tables(SourcesConfig(**shop, judgements=judged))
    assert imported.qrels is not None
    assert [tuple(row.values()) for row in imported.qrels.to_pylist()] == [("a", "1", 2), ("b", "1", 2), ("c", "2", 1)]
    assert (imported.counts["queries repeated"], imported.counts["qrels of unknown queries"]) == (1, 1)


def test_grades_as_numbers_labels_and_booleans(tmp_path: Path, shop: dict[str, str]) -> None:
    def grades(values: list[Any], mapping: dict[str, int]) -> list[int]:
        pairs = [{"query_id": q, "item_id": i} for q in ("q1", "q2") for i in ("1", "2")]
        rows = [pair | {"grade": value} for pair, value in zip(pairs, values, strict=True)]
        judged = write_rows(tmp_path / "judged.parquet", rows)
        imported = import_tables(SourcesConfig(**shop, judgements=judged, grades=mapping))
        assert imported.qrels is not None
        return [int(value) for value in imported.qrels["grade"].to_pylist()]

    assert grades([1.0, 0.1, 0.01, 0.0], {"1": 100, "0.10": 10, "0.01": 1}) == [100, 10, 1, 0]
    assert grades(["1.0", "0.1", "2", " E "], {"0.1": 10, "E": 4}) == [1, 10, 2, 4]
    assert grades([True, False, True, False], {}) == [1, 0, 1, 0]
    assert grades([-2, 0, 1, 2], {"-2": 0}) == [0, 0, 1, 2]  # TREC marks spam with -2
