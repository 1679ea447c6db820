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
        ({"items.csv": "item_id,title\n1,a,b\n"}, {}, "line 2 has 3 fields, and the header 2"),
        ({"items.csv": "item_id;title\n1;a\n"}, {}, "set sources.delimiter to ';'"),
        ({"items.csv": 'item_id,title\n1,"Big lamp\n2,desk\n3,"Small lamp\n4,chair\n'}, {}, "line 4.* on line 2"),
        ({"items.csv": 'item_id,title\n1,desk\n2,"Big lamp\n'}, {}, "row that begins on line 3"),
        ({"items.csv": "item_id,title,price\n1,a,cheap\n"}, {"numbers": ["price"]}, "'price' is in sources.numbers"),
        ({"items.csv": "item_id,title,price\n1,a,2\n"}, {"numbers": ["prise"]}, "perhaps 'price'"),
        (
            {"items.csv": f"item_id,title,n\n1,a,1.5\n2,b,{2**53 + 1}\n"},
            {"numbers": ["n"]},
            "740993 in row 1",
        ),
        ({"items.csv": f"item_id,title,n\n1,a,{10**19 + 1}\n"}, {"numbers": ["n"]}, "00001 in row 0"),
        ({"items.csv": "item_id,title,title\n1,a,b\n"}, {}, "two columns 'title'"),
        ({"items.csv": ""}, {}, "items.csv is empty"),
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


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("name", ["items.csv", "items.tsv", "items.jsonl"])
def test_another_encoding_is_an_error_that_names_the_setting_and_is_read_with_it(
    tmp_path: Path, name: str, encoding: str
) -> None:
    content = {
        "csv": 'item_id,title\n1,"Köln, Dom"\n',
        "tsv": "item_id\ttitle\n1\tKöln, Dom\n",
        "jsonl": '{"item_id":1,"title":"Köln, Dom"}\n',
    }[name.split(".")[1]]
    (tmp_path / name).write_bytes(content.encode(encoding))
    catalogue = str(tmp_path / name)
    with pytest.raises(DataError, match=f"{name}.*(sources.encoding|is not JSON)"):
        import_tables(SourcesConfig(catalogue=catalogue))
    items = import_tables(SourcesConfig(catalogue=catalogue, encoding=encoding)).items
    assert items.to_pylist() == [{"item_id": "1", "title": "Köln, Dom"}]


def test_settings_of_text_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'klingon' is no text encoding"):
        SourcesConfig(encoding="klingon")
    with pytest.raises(ValueError, match="delimiter"):
        SourcesConfig(delimiter=";;")
    with pytest.raises(DataError, match=r"remove sources\.encoding"):
        import_tables(SourcesConfig(format="wands", folder=str(tmp_path), encoding="latin-1"))
