"""Published data sets in their own layouts, in miniature: the exact tables that come of them."""

from pathlib import Path
from typing import Any

import pytest

from lrem.config import SourcesConfig
from lrem.curation.sources import import_tables
from lrem.errors import DataError
from tests.unit.curation.helpers import rows_of, write_rows, write_text


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
    write_text(folder / "shopping_queries_dataset_sources.csv", "query_id,source\n0,other\n1,negations\n3,behavioral\n")
    return folder


def test_esci(esci: Path) -> None:
    imported = import_tables(SourcesConfig(format="esci", folder=str(esci), locale="us"))
    fan = {"description": "<p>quiet</p>", "bullet_points": "light\nstrong", "brand": "Acme", "color": "White"}
    assert rows_of(imported) == (
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
    assert imported.counts["items without a title"] == imported.counts["qrels of unknown items"] == 1
    clone = import_tables(SourcesConfig(format="esci", folder=str(esci.parent), locale="us", grades={"S": 0}))
    assert clone.items == imported.items
    assert clone.qrels is not None
    assert clone.qrels["grade"].to_pylist() == [100, 1, 0, 0]


def test_esci_in_another_locale_and_without_query_sources(esci: Path) -> None:
    (esci / "shopping_queries_dataset_sources.csv").unlink()
    imported = import_tables(SourcesConfig(format="esci", folder=esci.as_uri(), locale="jp"))
    assert (imported.items["item_id"].to_pylist(), imported.items["title"].to_pylist()) == (["B01"], ["扇風機"])
    assert imported.queries.to_pylist() == [{"query_id": "3", "query": "扇風機", "split": "test", "small_version": 1}]


def test_wands(tmp_path: Path) -> None:
    folder = tmp_path / "WANDS" / "dataset"
    write_text(
        folder / "product.csv",
        "product_id\tproduct_name\tproduct_class\tcategory hierarchy\tproduct_description\tproduct_features\t"
        "rating_count\taverage_rating\treview_count\n"
        "0\tsolid wood platform bed\tBeds\tFurniture / Beds & Headboards / Twin/Full Beds\tgood , deep sleep\t"
        "overallwidth:64.7|color : oak\t15.0\t4.5\t15.0\n"
        '1\t"36"" vanity\twith sink"\t\t\t"line one\nline two"\t\t\t\t\n',
    )
    query = '0\tsalon chair\tMassage Chairs\n208\t"fawkes 36"" blue vanity"\tVanities\n216\twand bunk beds\t\n'
    write_text(folder / "query.csv", f"query_id\tquery\tquery_class\n{query}")
    labels = "0\t0\t0\tIrrelevant\n1\t208\t1\tExact\n2\t208\t0\tPartial\n3\t208\t77\tExact\n"
    write_text(folder / "label.csv", f"id\tquery_id\tproduct_id\tlabel\n{labels}")
    imported = import_tables(SourcesConfig(format="wands", folder=str(tmp_path / "WANDS")))
    names = ("item_id", "title", "category", "description", "product_class", "product_features")
    numbers = ("rating_count", "average_rating", "review_count")
    bed = ("0", "solid wood platform bed", ["Furniture", "Beds & Headboards", "Twin/Full Beds"], "good , deep sleep")
    bed = (*bed, "Beds", "overallwidth:64.7|color : oak", 15.0, 4.5, 15.0)
    vanity = ("1", '36" vanity\twith sink', [], "line one\nline two", "", "", None, None, None)
    assert rows_of(imported) == (
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
    assert imported.counts["qrels of unknown items"] == 1


@pytest.fixture
def ecom(tmp_path: Path) -> Path:
    folder = tmp_path / "Multi-CPR" / "data" / "ecom"
    write_text(folder / "corpus.tsv", '1\t"尼康" Z62\u2028机身\t套机\r\n2\t大落地窗\n3\t"墙面底漆\n4\t \n')
    write_text(folder / "train.query.txt", "1\t尼康z62\n2\t墙面 底漆 \n")
    write_text(folder / "dev.query.txt", "200000\t大落地窗\n")
    write_text(folder / "qrels.train.tsv", "1\t0\t1\t1\n2\t0\t3\t1\n2\t0\t4\t1\n")
    write_text(folder / "qrels.dev.tsv", "200000\t0\t2\t1\n")
    return folder


def test_multi_cpr(ecom: Path) -> None:
    imported = import_tables(SourcesConfig(format="multi_cpr", folder=str(ecom)))
    assert rows_of(imported) == (
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
    assert imported.counts["items without a title"] == imported.counts["qrels of unknown items"] == 1
    clone = import_tables(SourcesConfig(format="multi_cpr", folder=str(ecom.parent.parent)))
    assert rows_of(clone) == rows_of(imported)


def test_errors_of_published_data_sets(esci: Path, ecom: Path, tmp_path: Path) -> None:
    def message(**settings: Any) -> str:
        with pytest.raises(DataError) as raised:
            import_tables(SourcesConfig(**settings))
        return str(raised.value)

    for locale in (None, "es"):
        text = message(format="esci", folder=str(esci), locale=locale)
        assert "_examples.parquet" in text
        assert "locales jp, us" in text
        assert "sources.locale" in text
    assert "format wands needs sources.folder" in message(format="wands")
    assert "product.csv does not exist" in message(format="wands", folder=str(tmp_path))
    assert "remove sources.columns" in message(format="wands", folder="x", columns={"title": "name"})
    (ecom / "qrels.dev.tsv").write_text("200000\t0\t2\t1\n200000 0 2 1\n")
    assert "qrels.dev.tsv, line 2 has 1 fields, not 4" in message(format="multi_cpr", folder=str(ecom))
    (ecom / "dev.query.txt").unlink()
    assert "dev.query.txt does not exist" in message(format="multi_cpr", folder=str(ecom))
    write_text(tmp_path / "product.csv", "product_id\tproduct_nam\n1\ta\n")
    write_text(tmp_path / "query.csv", "query_id\tquery\tquery_class\n1\ta\tb\n")
    write_text(tmp_path / "label.csv", "id\tquery_id\tproduct_id\tlabel\n1\t1\t1\tExact\n")
    text = message(format="wands", folder=str(tmp_path))
    assert "no column 'product_name'" in text
    assert "'product_nam'" in text.rpartition(":")[2]
