"""Foreign files, small and in their published layouts, and the exact tables and counts that come of them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.config import SourcesConfig
from lrem.curation.sources import Imported, import_tables
from lrem.data.known_positives import query_identity
from lrem.data.schema import ITEMS, QRELS, QUERIES, read_items, read_table
from lrem.errors import DataError


def write(path: Path, content: str) -> str:
    """Bytes as they are: no newline is translated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return str(path)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def rows_of(imported: Imported) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    qrels = imported.qrels
    return imported.items.to_pylist(), imported.queries.to_pylist(), [] if qrels is None else qrels.to_pylist()


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, str]:
    """A catalogue and queries with ids, to judge."""
    return {
        "catalogue": write(tmp_path / "items.csv", "item_id,title\n1,red coat\n2,blue hat\n"),
        "queries": write(tmp_path / "queries.csv", "query_id,query\nq1,coat\nq2,hat\n"),
    }


def test_csv_with_quotes_crlf_and_a_column_map(tmp_path: Path) -> None:
    catalogue = write(
        tmp_path / "shop.csv",
        "\ufeffsku,name,maker,price,ean,sold\r\n"
        '007,"Sofa ""Lund"", 3\r\nseats",Möbel & Co,1299.00,0401,true\r\n'
        '008,36" vanity,,12,0402,false\r\n'
        "007,a second sofa,x,1,0403,true\r\n"
        "009,  ,x,1,0404,\r\n",
    )
    queries = write(tmp_path / "queries.tsv", "id\ttext\tsplit\nq1\t sofa  bed \ttrain\nq2\t \ttest\nq3\t沙发\ttest\n")
    judged = write(
        tmp_path / "judged.csv",
        "query_id,sku,label\nq1,007,partly\nq1,007,yes\nq1,008,0\nq2,007,yes\nq3,009,yes\nq3,008,2.0\n",
    )
    columns = {"item_id": "sku", "title": "name", "brand": "maker", "query_id": "id", "query": "text", "grade": "label"}
    made = import_tables(
        SourcesConfig(
            catalogue=catalogue, queries=queries, judgements=judged, columns=columns, grades={"yes": 3, "partly": 1}
        )
    )
    items, asked, qrels = rows_of(made)
    assert items == [
        {"item_id": "007", "title": 'Sofa "Lund", 3\r\nseats', "brand": "Möbel & Co", "price": 1299.0, "ean": "0401"}
        | {"sold": True},
        {"item_id": "008", "title": '36" vanity', "brand": "", "price": 12.0, "ean": "0402", "sold": False},
    ]
    assert made.items.schema.field("price").type == pa.float64()
    assert asked == [
        {"query_id": "q1", "query": "sofa  bed", "split": "train"},
        {"query_id": "q3", "query": "沙发", "split": "test"},
    ]
    assert qrels == [
        {"query_id": "q1", "item_id": "007", "grade": 3},
        {"query_id": "q1", "item_id": "008", "grade": 0},
        {"query_id": "q3", "item_id": "008", "grade": 2},
    ]
    assert made.counts == {
        "items without a title": 1,
        "items repeated": 1,
        "items": 2,
        "queries blank": 1,
        "queries repeated": 0,
        "queries": 2,
        "qrels of unknown queries": 1,
        "qrels of unknown items": 1,
        "qrels repeated": 1,
        "qrels": 3,
    }


def test_what_is_imported_passes_the_doors_of_every_stage(tmp_path: Path, shop: dict[str, str]) -> None:
    judged = write(tmp_path / "judged.csv", "query_id,item_id,grade\nq1,1,1\n")
    made = import_tables(SourcesConfig(**shop, judgements=judged))
    for name, table in (("items", made.items), ("queries", made.queries), ("qrels", made.qrels)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    assert read_items(tmp_path / "items.parquet") == made.items
    assert read_table(tmp_path / "queries.parquet", QUERIES) == made.queries
    assert read_table(tmp_path / "qrels.parquet", QRELS) == made.qrels
    assert made.items.schema == ITEMS


def test_json_lines_with_numbers_as_ids(tmp_path: Path) -> None:
    items = [{"id": 7, "title": "tea\u2028pot", "tags": ["a", "b"]}, {"id": "8b", "title": "cup", "made": "2024-01-02"}]
    catalogue = write(tmp_path / "items.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in items))
    log = tmp_path / "log.jsonl.gz"
    asked = [
        {"query": "Tea  pot", "day": 1},
        {"query": "cup", "day": 1},
        {"query": "tea pot", "day": 2},
        {"query": None},
    ]
    log.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in asked).encode()))
    clicks = write(
        tmp_path / "clicks.json",
        '{"query": "TEA POT", "id": 7}\n{"query": "tea  pot", "id": 7}\n\n{"query": "spoon", "id": 7}\n'
        '{"query": "cup", "id": "8b"}\n{"query": "cup", "id": 9}\n',
    )
    made = import_tables(
        SourcesConfig(catalogue=catalogue, queries=str(log), judgements=clicks, columns={"item_id": "id"})
    )
    pot, cup = f"{query_identity('tea pot'):016x}", f"{query_identity('cup'):016x}"
    assert rows_of(made) == (
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
    assert {name: count for name, count in made.counts.items() if count} == {
        "items": 2,
        "queries blank": 1,
        "queries repeated": 1,
        "queries": 2,
        "qrels of unknown queries": 1,
        "qrels of unknown items": 1,
        "qrels repeated": 1,
        "qrels": 2,
    }


def test_parquet_folders_uris_and_types_that_others_write(tmp_path: Path) -> None:
    folder = tmp_path / "items"
    folder.mkdir()
    brand = pa.array(["Ikea", "Muji"]).dictionary_encode()
    first = {"item_id": pa.array([1, 2]), "title": pa.array(["bed", "lamp"], pa.large_string()), "brand": brand}
    pq.write_table(pa.table(first), folder / "part-0.parquet")
    path = pa.array([["home", "rug"]], pa.large_list(pa.large_string()))
    second = {"item_id": pa.array([3.0]), "title": pa.array(["rug"]), "category": path}
    pq.write_table(pa.table(second), folder / "part-1.parquet")
    write(folder / "_SUCCESS", "")
    write(folder / "_temporary" / "0" / "part-2.parquet", "half written")
    queries = write(tmp_path / "queries.csv", "query,count\nbed,3\nrug,\nBED,4\n")
    made = import_tables(SourcesConfig(catalogue=folder.as_uri(), queries=Path(queries).as_uri()))
    assert made.items.to_pylist() == [
        {"item_id": "1", "title": "bed", "brand": "Ikea", "category": None},
        {"item_id": "2", "title": "lamp", "brand": "Muji", "category": None},
        {"item_id": "3", "title": "rug", "brand": None, "category": ["home", "rug"]},
    ]
    assert [field.type for field in made.items.schema] == [pa.string()] * 3 + [pa.list_(pa.string())]
    assert [(row["query"], row["count"]) for row in made.queries.to_pylist()] == [("bed", 7), ("rug", 1)]
    assert made.qrels is None


def test_a_click_log_alone_gives_queries_and_pairs_and_a_catalogue_alone_gives_none(
    tmp_path: Path, shop: dict[str, str]
) -> None:
    clicks = write(tmp_path / "clicks.csv.gz", "")
    Path(clicks).write_bytes(gzip.compress(b"query,product\ncoat,1\nhat,2\nCoat,2\n"))
    columns = {"judgements/item_id": "product"}
    made = import_tables(SourcesConfig(catalogue=shop["catalogue"], judgements=clicks, columns=columns))
    assert [(row["query"], row["count"]) for row in made.queries.to_pylist()] == [("coat", 2), ("hat", 1)]
    ids = made.queries["query_id"].to_pylist()
    assert made.qrels is not None
    assert [tuple(row.values()) for row in made.qrels.to_pylist()] == [
        (ids[0], "1", 1),
        (ids[1], "2", 1),
        (ids[0], "2", 1),
    ]
    alone = import_tables(SourcesConfig(catalogue=shop["catalogue"]))
    assert alone.queries == QUERIES.empty_table()
    assert alone.qrels is None
    assert alone.counts == {"items without a title": 0, "items repeated": 0, "items": 2}


def test_judgements_by_text_reach_every_id_of_the_text(tmp_path: Path, shop: dict[str, str]) -> None:
    shop["queries"] = write(tmp_path / "twins.csv", "query_id,query\na,coat\nb,Coat\nb,COAT\nc,hat\n")
    judged = write(tmp_path / "judged.csv", "query,item_id,grade\ncoat,1,2\nhat,2,1\nshoe,2,1\n")
    made = import_tables(SourcesConfig(**shop, judgements=judged))
    assert made.qrels is not None
    assert [tuple(row.values()) for row in made.qrels.to_pylist()] == [("a", "1", 2), ("b", "1", 2), ("c", "2", 1)]
    assert (made.counts["queries repeated"], made.counts["qrels of unknown queries"]) == (1, 1)


def test_grades_as_numbers_labels_and_truth_values(tmp_path: Path, shop: dict[str, str]) -> None:
    def grades(values: list[Any], mapping: dict[str, int]) -> list[int]:
        pairs = [{"query_id": q, "item_id": i} for q in ("q1", "q2") for i in ("1", "2")]
        rows = [pair | {"grade": value} for pair, value in zip(pairs, values, strict=True)]
        judged = write_rows(tmp_path / "judged.parquet", rows)
        made = import_tables(SourcesConfig(**shop, judgements=judged, grades=mapping))
        assert made.qrels is not None
        return [int(value) for value in made.qrels["grade"].to_pylist()]

    assert grades([1.0, 0.1, 0.01, 0.0], {"1": 100, "0.10": 10, "0.01": 1}) == [100, 10, 1, 0]
    assert grades(["1.0", "0.1", "2", " E "], {"0.1": 10, "E": 4}) == [1, 10, 2, 4]
    assert grades([True, False, True, False], {}) == [1, 0, 1, 0]
    assert grades([-2, 0, 1, 2], {"-2": 0}) == [0, 0, 1, 2]  # TREC marks spam with -2


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"items.csv": "sku,titel\n1,a\n"}, {"columns": {"item_id": "sku"}}, "'title' .* perhaps 'titel'"),
        ({"items.csv": "item_id,title\n,a\n"}, {}, "'item_id' is empty in row 0"),
        ({"items.csv": "item_id,title\n1,\n"}, {}, "no item with a title"),
        ({"items.csv": "item_id,title\n1,a,b\n"}, {}, "not readable as csv .*Expected 2 columns, got 3"),
        ({"items.csv": "item_id,title,title\n1,a,b\n"}, {}, "two columns 'title'"),
        ({"items.csv": ""}, {}, "not readable as csv"),
        ({"items.parquet": "version https://git-lfs.github.com/spec/v1"}, {}, "as parquet .*git lfs pull"),
        (
            {"items.jsonl": '{"item_id": 1, "title": "a"}\n{"item_id": 2\n'},
            {},
            "line 2 is not JSON .*one object a line",
        ),
        ({"items.json": "[1]\n"}, {}, "line 1 is not a JSON object"),
        ({"items.xlsx": "x"}, {}, "ending '.xlsx' is not known: convert it to one of .parquet"),
        ({}, {"catalogue": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({}, {"catalogue": "nosuch://x"}, "nosuch://x cannot be opened"),
        ({"items/a.csv": "item_id,title\n1,a\n", "items/b.tsv": "item_id\ttitle\n2\tb\n"}, {}, r"kinds \(csv, tsv\)"),
        ({"items/readme.md": "x"}, {}, "holds no file that ends in"),
        ({"queries.csv": "query_id,query\n1,a\n2,b\n1,c\n"}, {}, "query_id '1' has two texts, 'a' and 'c'"),
        ({"queries.csv": "query_id,query\n,a\n"}, {}, "'query_id' is empty in row 0"),
        ({"queries.csv": "query\n \n"}, {}, "no query that is not blank"),
        ({"queries.csv": "query,count\na,many\n"}, {}, "'count' is not whole numbers"),
        ({"judgements.csv": "query_id,item_id,grade\nq1,1,Exact\n"}, {}, r"label 'Exact' .*grades: {'Exact': 1}"),
        ({"judgements.csv": "query_id,item_id,grade\nq1,1,0.5\n"}, {}, r"grade 0.5 is not a whole .*{'0.5': 1}"),
        ({"judgements.csv": "query_id,item_id,grade\nq1,1,nan\n"}, {}, "grade nan is not a whole"),
        ({"judgements.csv": "query_id,item_id,grade\nq1,1,-1\n"}, {}, "grade of '-1' is -1, below 0"),
        ({"judgements.jsonl": '{"query_id": "q1", "item_id": 1, "grade": null}\n'}, {}, "'grade' is null in row 0"),
        ({"judgements.csv": "query_id,item_id,esci_label\nq1,1,E\n"}, {}, "no column 'grade', but 'esci_label'"),
        ({"judgements.csv": "query_id,item_id,lable\nq1,1,1\n"}, {"columns": {"grade": "label"}}, "perhaps 'lable'"),
        ({"judgements.csv": "query_id,item_id,grade\nx,1,1\nq1,y,1\n"}, {}, "none of 2 pairs has a query and an item"),
        ({"queries.csv": "query\ncoat\n", "judgements.csv": "query_id,item_id\n1,1\n"}, {}, "no ids of their own"),
        ({}, {"columns": {"judgments/item_id": "sku"}}, "there is no 'judgments': name one of catalogue"),
        ({}, {"folder": "x"}, "format table does not use sources.folder"),
        ({}, {"catalogue": None}, "needs sources.catalogue"),
    ],
)
def test_errors_of_tables(
    tmp_path: Path,
    shop: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        write(Path(name), content)
        top = name.split("/")[0]
        file = top.split(".")[0].replace("items", "catalogue")
        shop[file] = top
    with pytest.raises(DataError, match=message):
        import_tables(SourcesConfig(**(shop | settings)))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    for name, content in (
        ("items.csv", b"item_id,title\n1,K\xf6ln\n"),
        ("items.jsonl", b'{"item_id":1,"title":"K\xf6ln"}'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not .*(UTF8|UTF-8)"):
            import_tables(SourcesConfig(catalogue=str(tmp_path / name)))


@pytest.fixture
def esci(tmp_path: Path) -> Path:
    folder = tmp_path / "esci-data" / "shopping_queries_dataset"
    folder.mkdir(parents=True)
    names = ("title", "description", "bullet_point", "brand", "color", "locale")
    products = [
        ("B01", "Fan, 12 in", "<p>quiet</p>", "light\nstrong", "Acme", "White", "us"),
        ("B02", "Fan cover", None, None, None, None, "us"),
        ("B03", None, None, None, None, None, "us"),
        ("B01", "扇風機", None, None, "Acme", "白", "jp"),
    ]
    write_rows(
        folder / "shopping_queries_dataset_products.parquet",
        [{"product_id": row[0]} | {f"product_{n}": v for n, v in zip(names, row[1:], strict=True)} for row in products],
    )
    examples = [
        ("bathroom fan  without light", 1, "B01", "us", "E", 1, "train"),
        ("bathroom fan  without light", 1, "B02", "us", "C", 1, "train"),
        ("fan", 2, "B01", "us", "S", 0, "test"),
        ("fan", 2, "B02", "us", "I", 0, "test"),
        ("fan", 2, "B03", "us", "E", 0, "test"),
        ("扇風機", 3, "B01", "jp", "E", 1, "test"),
    ]
    columns = ("query", "query_id", "product_id", "product_locale", "esci_label", "small_version", "split")
    write_rows(
        folder / "shopping_queries_dataset_examples.parquet",
        [
            {"example_id": number} | dict(zip(columns, row, strict=True)) | {"large_version": 1}
            for number, row in enumerate(examples)
        ],
    )
    write(folder / "shopping_queries_dataset_sources.csv", "query_id,source\n0,other\n1,negations\n3,behavioral\n")
    return folder


def test_esci(esci: Path) -> None:
    made = import_tables(SourcesConfig(format="esci", folder=str(esci), locale="us"))
    fan = {"description": "<p>quiet</p>", "bullet_points": "light\nstrong", "brand": "Acme", "color": "White"}
    assert rows_of(made) == (
        [
            {"item_id": "B01", "title": "Fan, 12 in"} | fan,
            {"item_id": "B02", "title": "Fan cover"} | dict.fromkeys(fan),
        ],
        [
            {"query_id": "1", "query": "bathroom fan  without light", "split": "train", "small_version": 1}
            | {"source": "negations"},
            {"query_id": "2", "query": "fan", "split": "test", "small_version": 0, "source": None},
        ],
        [
            {"query_id": "1", "item_id": "B01", "grade": 100},
            {"query_id": "1", "item_id": "B02", "grade": 1},
            {"query_id": "2", "item_id": "B01", "grade": 10},
            {"query_id": "2", "item_id": "B02", "grade": 0},
        ],
    )
    assert made.counts["items without a title"] == made.counts["qrels of unknown items"] == 1
    clone = import_tables(SourcesConfig(format="esci", folder=str(esci.parent), locale="us", grades={"S": 0}))
    assert clone.items == made.items
    assert clone.qrels is not None
    assert clone.qrels["grade"].to_pylist() == [100, 1, 0, 0]


def test_esci_in_another_locale_and_without_sources(esci: Path) -> None:
    (esci / "shopping_queries_dataset_sources.csv").unlink()
    made = import_tables(SourcesConfig(format="esci", folder=esci.as_uri(), locale="jp"))
    assert (made.items["item_id"].to_pylist(), made.items["title"].to_pylist()) == (["B01"], ["扇風機"])
    assert made.queries.to_pylist() == [{"query_id": "3", "query": "扇風機", "split": "test", "small_version": 1}]


def test_wands(tmp_path: Path) -> None:
    folder = tmp_path / "WANDS" / "dataset"
    write(
        folder / "product.csv",
        "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features\t"
        "rating_count\taverage_rating\treview_count\n"
        "0\tsolid wood platform bed\tBeds\tFurniture / Beds & Headboards / Twin/Full Beds\tgood , deep sleep\t"
        "overallwidth:64.7|color : oak\t15.0\t4.5\t15.0\n"
        '1\t"36"" vanity\twith sink"\t\t\t"line one\nline two"\t\t\t\t\n',
    )
    query = '0\tsalon chair\tMassage Chairs\n208\t"fawkes 36"" blue vanity"\tVanities\n216\twand bunk beds\t\n'
    write(folder / "query.csv", f"query_id\tquery\tquery_class\n{query}")
    labels = "0\t0\t0\tIrrelevant\n1\t208\t1\tExact\n2\t208\t0\tPartial\n3\t208\t77\tExact\n"
    write(folder / "label.csv", f"id\tquery_id\tproduct_id\tlabel\n{labels}")
    made = import_tables(SourcesConfig(format="wands", folder=str(tmp_path / "WANDS")))
    names = ("item_id", "title", "category", "description", "product_class", "product_features")
    numbers = ("rating_count", "average_rating", "review_count")
    bed = ("0", "solid wood platform bed", ["Furniture", "Beds & Headboards", "Twin/Full Beds"], "good , deep sleep")
    bed = (*bed, "Beds", "overallwidth:64.7|color : oak", 15.0, 4.5, 15.0)
    vanity = ("1", '36" vanity\twith sink', [], "line one\nline two", "", "", None, None, None)
    assert rows_of(made) == (
        [dict(zip(names + numbers, row, strict=True)) for row in (bed, vanity)],
        [
            {"query_id": "0", "query": "salon chair", "category": "Massage Chairs"},
            {"query_id": "208", "query": 'fawkes 36" blue vanity', "category": "Vanities"},
            {"query_id": "216", "query": "wand bunk beds", "category": ""},
        ],
        [
            {"query_id": "0", "item_id": "0", "grade": 0},
            {"query_id": "208", "item_id": "1", "grade": 2},
            {"query_id": "208", "item_id": "0", "grade": 1},
        ],
    )
    assert made.counts["qrels of unknown items"] == 1


@pytest.fixture
def ecom(tmp_path: Path) -> Path:
    folder = tmp_path / "Multi-CPR" / "data" / "ecom"
    write(folder / "corpus.tsv", '1\t"尼康" Z62\u2028机身\t套机\r\n2\t大落地窗\n3\t"墙面底漆\n4\t \n')
    write(folder / "train.query.txt", "1\t尼康z62\n2\t墙面 底漆 \n")
    write(folder / "dev.query.txt", "200000\t大落地窗\n")
    write(folder / "qrels.train.tsv", "1\t0\t1\t1\n2\t0\t3\t1\n2\t0\t4\t1\n")
    write(folder / "qrels.dev.tsv", "200000\t0\t2\t1\n")
    return folder


def test_multi_cpr(ecom: Path) -> None:
    made = import_tables(SourcesConfig(format="multi_cpr", folder=str(ecom)))
    assert rows_of(made) == (
        [
            {"item_id": "1", "title": '"尼康" Z62\u2028机身\t套机'},
            {"item_id": "2", "title": "大落地窗"},
            {"item_id": "3", "title": '"墙面底漆'},
        ],
        [
            {"query_id": "1", "query": "尼康z62", "split": "train"},
            {"query_id": "2", "query": "墙面 底漆", "split": "train"},
            {"query_id": "200000", "query": "大落地窗", "split": "test"},
        ],
        [
            {"query_id": "1", "item_id": "1", "grade": 1},
            {"query_id": "2", "item_id": "3", "grade": 1},
            {"query_id": "200000", "item_id": "2", "grade": 1},
        ],
    )
    assert made.counts["items without a title"] == made.counts["qrels of unknown items"] == 1
    clone = import_tables(SourcesConfig(format="multi_cpr", folder=str(ecom.parent.parent)))
    assert rows_of(clone) == rows_of(made)


def test_errors_of_published_sets(esci: Path, ecom: Path, tmp_path: Path) -> None:
    def message(**settings: Any) -> str:
        with pytest.raises(DataError) as raised:
            import_tables(SourcesConfig(**settings))
        return str(raised.value)

    for locale in (None, "es"):
        told = message(format="esci", folder=str(esci), locale=locale)
        assert told.endswith("holds the locales jp, us: set sources.locale to one of them")
    assert message(format="wands") == "format wands needs sources.folder: set it to the unpacked data set"
    assert "product.csv does not exist" in message(format="wands", folder=str(tmp_path))
    assert "knows its files: remove sources.columns" in message(format="wands", folder="x", columns={"title": "name"})
    (ecom / "qrels.dev.tsv").write_text("200000\t0\t2\t1\n200000 0 2 1\n")
    assert "qrels.dev.tsv, line 2 has 1 fields, not 4" in message(format="multi_cpr", folder=str(ecom))
    (ecom / "dev.query.txt").unlink()
    assert "dev.query.txt does not exist" in message(format="multi_cpr", folder=str(ecom))
    write(tmp_path / "product.csv", "product_id\tproduct_nam\n1\ta\n")
    write(tmp_path / "query.csv", "query_id\tquery\tquery_class\n1\ta\tb\n")
    write(tmp_path / "label.csv", "id\tquery_id\tproduct_id\tlabel\n1\t1\t1\tExact\n")
    told = message(format="wands", folder=str(tmp_path))
    assert "no column 'product_name'" in told
    assert told.endswith("perhaps 'product_nam'")
