"""Errors of an import name the file, and the row, value or setting."""

from pathlib import Path
from typing import Any

import pytest

from lrem.config import SourcesConfig
from lrem.curation.sources import import_tables
from lrem.errors import DataError
from tests.unit.curation.helpers import write_text


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
            "line 2 is not JSON",
        ),
        ({"items.json": "[1]\n"}, {}, "line 1 is not a JSON object"),
        ({"items.xlsx": "x"}, {}, "'.xlsx'.* convert it to one of .parquet"),
        ({}, {"catalogue": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({}, {"catalogue": "nosuch://x"}, "nosuch://x cannot be opened"),
        ({"items/a.csv": "item_id,title\n1,a\n", "items/b.tsv": "item_id\ttitle\n2\tb\n"}, {}, r"\(csv, tsv\)"),
        ({"items/readme.md": "x"}, {}, "holds no file that ends in"),
        ({"queries.csv": "query_id,query\n1,a\n2,b\n1,c\n"}, {}, "query_id '1' has two texts, 'a' and 'c'"),
        ({"queries.csv": "query_id,query\n,a\n"}, {}, "'query_id' is empty in row 0"),
        ({"queries.csv": "query\n \n"}, {}, "no query that is not blank"),
        ({"queries.csv": "query,count\na,many\n"}, {}, "'count' is not .*whole numbers"),
        ({"judgements.csv": "query_id,item_id,grade\nq1,1,Exact\n"}, {}, r"label 'Exact' .*grades: {'Exact': 1}"),
        ({"judgements.csv": "query_id,item_id,grade\nq1,1,0.5\n"}, {}, r"grade 0.5 is not a whole .*{'0.5': 1}"),
        ({"judgements.csv": "query_id,item_id,grade\nq1,1,nan\n"}, {}, "grade nan is not a whole"),
        ({"judgements.csv": "query_id,item_id,grade\nq1,1,-1\n"}, {}, "grade of '-1' is -1, below 0"),
        ({"judgements.jsonl": '{"query_id": "q1", "item_id": 1, "grade": null}\n'}, {}, "'grade' is null in row 0"),
        ({"judgements.csv": "query_id,item_id,esci_label\nq1,1,E\n"}, {}, "no column 'grade', but 'esci_label'"),
        ({"judgements.csv": "query_id,item_id,lable\nq1,1,1\n"}, {"columns": {"grade": "label"}}, "perhaps 'lable'"),
        ({"judgements.csv": "query_id,item_id,grade\nx,1,1\nq1,y,1\n"}, {}, "judgements.csv: none of 2 pairs"),
        ({"queries.csv": "query\ncoat\n", "judgements.csv": "query_id,item_id\n1,1\n"}, {}, "no ids of their own"),
        ({}, {"columns": {"judgments/item_id": "sku"}}, "there is no .judgments"),
        ({}, {"folder": "x"}, "format table does not use sources.folder"),
        ({}, {"catalogue": None}, "needs sources.catalogue"),
    ],
)
def test_errors_name_the_file_and_the_row_or_setting(
    tmp_path: Path,
    shop: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    settings: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        write_text(Path(name), content)
        top = name.split("/")[0]
        file = top.split(".")[0].replace("items", "catalogue")
        shop[file] = top
    with pytest.raises(DataError, match=message):
        import_tables(SourcesConfig(**(shop | settings)))


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    for name, content in (
        ("items.csv", b"item_id,title\n1,K\xf6ln\n"),
        ("items.jsonl", b'{"item_id":1,"title":"K\xf6ln"}'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not .*(UTF8|UTF-8)"):
            import_tables(SourcesConfig(catalogue=str(tmp_path / name)))
