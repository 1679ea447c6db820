"""CSV and TSV: the text that is read is the text that was written, and numbers are only what reads back the same."""

import csv
import gzip
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrem.config import SourcesConfig
from lrem.curation.sources import import_tables
from lrem.data.catalogue_limits import is_blank
from tests.unit.curation.helpers import rows_of, write_text

titles = st.lists(
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1).filter(
        lambda text: not is_blank(text)
    ),
    min_size=1,
    max_size=5,
)


def read_titles(path: str, **settings: str) -> list[str]:
    """Return the titles of an imported catalogue."""
    titles = import_tables(SourcesConfig(catalogue=path, **settings)).items["title"].to_pylist()
    return [str(title) for title in titles]


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    lines = ["item_id\ttitle", '1\t"Big lamp', "2\tdesk", '3\t"Small lamp', "4\tchair", '5\t24" monitor', '6\t"x" y']
    path = write_text(tmp_path / "items.tsv", "\n".join(lines) + "\n")
    assert read_titles(path) == ['"Big lamp', "desk", '"Small lamp', "chair", '24" monitor', '"x" y']


@given(titles, st.sampled_from(",;|"))
@settings(max_examples=100, deadline=None)
def test_any_title_survives_csv(texts: list[str], delimiter: str) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter)
    writer.writerows([("item_id", "title"), *enumerate(texts)])
    with TemporaryDirectory() as folder:
        path = write_text(Path(folder) / "items.csv", stream.getvalue())
        assert read_titles(path, delimiter=delimiter) == texts
        (Path(folder) / "items.csv.gz").write_bytes(gzip.compress(stream.getvalue().encode("utf-16")))
        assert read_titles(f"{path}.gz", delimiter=delimiter, encoding="utf-16") == texts


@given(titles)
@settings(max_examples=100, deadline=None)
def test_any_title_without_tabs_and_line_breaks_survives_tsv(texts: list[str]) -> None:
    texts = [text for text in texts if not set(text) & {"\t", "\n", "\r"}] or ["tea"]
    with TemporaryDirectory() as folder:
        rows = "".join(f"{i}\t{text}\n" for i, text in enumerate(texts))
        assert read_titles(write_text(Path(folder) / "items.tsv", f"item_id\ttitle\n{rows}")) == texts


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1E5", "2E3"], ["1E5", "2E3"]),
        (["1.10", "1.9"], ["1.10", "1.9"]),
        (["007", "12"], ["007", "12"]),
        (["-0", "1"], ["-0", "1"]),
        (["1.5", "2"], [1.5, 2.0]),
        (["1.5", "2.0"], [1.5, 2.0]),
        (["2", "2.0"], ["2", "2.0"]),
        (["0.1", "-3.25"], [0.1, -3.25]),
        (["12", ""], [12, None]),
        (["0.12345678901234567890", "1"], ["0.12345678901234567890", "1"]),
        (["123456789012345678", "-1"], [123456789012345678, -1]),
        (["99999999999999999999", "1"], ["99999999999999999999", "1"]),
        (["true", "FALSE"], [True, False]),
        (["", ""], ["", ""]),
    ],
)
def test_a_column_becomes_numbers_only_if_they_read_back_the_same(
    tmp_path: Path, cells: list[str], values: list[object]
) -> None:
    rows = "".join(f"{i},lamp,{cell}\n" for i, cell in enumerate(cells))
    path = write_text(tmp_path / "items.csv", f"item_id,title,model\n{rows}")
    assert import_tables(SourcesConfig(catalogue=path)).items["model"].to_pylist() == values


def test_numbers_in_unusual_spelling_are_named_and_read_if_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_text(tmp_path / "items.csv", "item_id,title,price,code\n1,a,19.90,007\n2,b,,12\n3,c,1E2,3\n")
    imported = import_tables(SourcesConfig(catalogue=path))
    assert imported.items["price"].to_pylist() == ["19.90", "", "1E2"]
    assert [record.getMessage().split("sources.")[1] for record in caplog.records] == ["numbers=[price]"]
    imported = import_tables(SourcesConfig(catalogue=path, numbers=["price", "code"]))
    assert imported.items["price"].to_pylist() == [19.9, None, 100.0]
    assert imported.items["code"].to_pylist() == [7.0, 12.0, 3.0]


def test_ids_of_pandas_with_point_zero_match(tmp_path: Path) -> None:
    """Pandas writes whole ids as 123.0 where another cell of the column is empty."""
    plain = write_text(tmp_path / "plain.csv", "item_id,title\n123,coat\n124,hat\n")
    floats = write_text(tmp_path / "floats.csv", "item_id,title\n123.0,coat\n124.0,hat\n")
    versions = write_text(tmp_path / "versions.csv", "item_id,title\n1.0,coat\n1.5,hat\n")
    queries = write_text(tmp_path / "queries.csv", "query_id,query\n7.0,coat\n8.0,hat\n")

    def pairs(catalogue: str, item_ids: list[str]) -> list[tuple[str, str]]:
        rows = "".join(f"{query},{item}\n" for query in ("7", "8.0") for item in item_ids)
        judged = write_text(tmp_path / "clicks.csv", f"query_id,item_id\n{rows}")
        imported = import_tables(SourcesConfig(catalogue=catalogue, queries=queries, judgements=judged))
        return [(row["query_id"], row["item_id"]) for row in rows_of(imported)[2]]

    assert pairs(plain, ["123.0", "124.0"]) == [("7", "123"), ("7", "124"), ("8", "123"), ("8", "124")]
    assert pairs(floats, ["123", "124.0"]) == [("7", "123"), ("7", "124"), ("8", "123"), ("8", "124")]
    assert pairs(versions, ["1.0"]) == [("7", "1.0"), ("8", "1.0")]
