"""Curation of a catalogue small enough to check by hand, with a file of reasonings."""

from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.config import Config, load_config
from lrem.curation.datasheet import NEAR_OTHERS
from lrem.data.files import write_parquet
from lrem.errors import DataError
from ray_apps.curation import curate
from ray_apps.evaluation import inputs
from tests.ray.curation.small_shop import datasheet, decided_rows, with_settings

pytestmark = pytest.mark.usefixtures("ray_cluster")

TITLES = {
    "i1": "steel helmet",
    "i2": "leather gloves",
    "i3": "paper bike poster",
    "i4": "bike bell",
    "i5": "reflective vest",
    "i6": "tin soup",
}


def bike_shop(folder: Path) -> Config:
    """Write a shop: q1 needs a reasoning; q2's leads to nothing relevant; q3 is easy; q4's only repeats the query."""
    queries = {"q1": "ride a bike", "q2": "soup for two", "q3": "tin soup", "q4": "bike bell", "t1": "test only"}
    reasonings = {"q1": "helmet, gloves, bike", "q2": "helmet", "q3": "", "q4": "bell"}
    judged = [("q1", "i1"), ("q1", "i2"), ("q1", "i5"), ("q2", "i6"), ("q3", "i6"), ("q4", "i4")]
    tables = {
        "items": {"item_id": list(TITLES), "title": list(TITLES.values())},
        "queries": {"query_id": list(queries), "query": list(queries.values()), "split": ["train"] * 4 + ["test"]},
        "teacher": {"query_id": list(reasonings), "reasoning": list(reasonings.values())},
        "qrels": {"query_id": [q for q, _ in judged], "item_id": [i for _, i in judged], "grade": [1] * len(judged)},
    }
    for name, table in tables.items():
        write_parquet(pa.table(table), folder / f"world/{name}.parquet")
    return load_config(
        None,
        [
            *(f"run_dir={folder}", "curate.top_k=4", "curate.rl_share=0.5"),
            *("curate.difficulty.recall_below=null", "ray.num_cpus=4"),
        ],
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return bike_shop(tmp_path)


class CuratedShop(NamedTuple):
    """A finished run."""

    config: Config
    counters: dict[str, Any]


@pytest.fixture(scope="module")
def curated(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> CuratedShop:
    config = bike_shop(tmp_path_factory.mktemp("curated"))
    return CuratedShop(config, curate.run(config))


def add_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a parquet file; columns that they lack are null."""
    write_parquet(pa.Table.from_pylist([*pq.read_table(file).to_pylist(), *rows]), file)


def test_difference_set_and_rules_by_hand(curated: CuratedShop) -> None:
    rows = decided_rows(curated.config)
    # BM25 retrieves i3 and i4 for "ride a bike"; helmet and gloves add i1 and i2; i5 is relevant but not reached
    assert rows["q1"]["reasoning"] == "helmet, gloves"
    assert (rows["q1"]["outcome"], sorted(rows["q1"]["items"])) == ("kept", ["i1", "i2"])
    assert rows["q2"]["outcome"] == "nothing relevant"
    assert (rows["q3"]["outcome"], rows["q3"]["items"]) == ("kept without reasoning", ["i6"])
    assert (rows["q4"]["reasoning"], rows["q4"]["items"]) == ("", ["i4"])


def test_every_row_is_written_once(curated: CuratedShop) -> None:
    config, counters = curated
    triplets = pq.read_table(config.path("triplets")).to_pylist()
    pairs = pq.read_table(config.path("rl_pairs")).to_pylist()
    written = sorted((row["query_id"], row["item_id"]) for row in triplets + pairs)
    assert written == [("q1", "i1"), ("q1", "i2"), ("q3", "i6"), ("q4", "i4")]
    assert not {row["query_id"] for row in triplets} & {row["query_id"] for row in pairs}
    assert (counters["queries"], counters["kept"], counters["nothing relevant"]) == (4, 1, 1)
    assert counters["triplets"] + counters["rl_pairs"] == 4
    assert all(row["title"] == TITLES[row["item_id"]] for row in triplets + pairs)
    judged = {"q1": ["i1", "i2", "i5"], "q3": ["i6"], "q4": ["i4"]}  # i5 has no row: nothing reaches it
    assert all(row["relevant_ids"] == judged[row["query_id"]] for row in triplets + pairs)
    assert curate.run(config) == counters
    assert pq.read_table(config.path("triplets")).to_pylist() == triplets


def test_judged_queries_without_a_reasoning_go_to_reinforcement(config: Config) -> None:
    reasonings = pq.read_table(config.path("teacher")).slice(1)  # none for q1, whose i1, i2 and i5 are relevant
    write_parquet(reasonings, config.path("teacher"))
    counters = curate.run(config)
    pairs = [row for row in pq.read_table(config.path("rl_pairs")).to_pylist() if row["query_id"] == "q1"]
    assert sorted(row["item_id"] for row in pairs) == ["i1", "i2", "i5"]
    assert counters["kept without a teacher"] == 1
    assert "q1" not in pq.read_table(config.path("triplets"))["query_id"].to_pylist()
    assert curate.run(with_settings(config, keep_untaught=False))["no teacher"] == 1


@pytest.mark.slow
def test_a_dev_set_is_held_out_and_returned(config: Config) -> None:
    held_out = with_settings(config, dev_share=0.49, rl_share=0.1).model_copy(update={"seed": 5})
    counters = curate.run(held_out)
    dev = pq.read_table(held_out.path("dev")).to_pylist()
    rest = [row for name in ("triplets", "rl_pairs") for row in pq.read_table(held_out.path(name)).to_pylist()]
    assert counters["dev"] == len(dev) > 0
    assert len(dev) + len(rest) == 4
    assert not {row["query_id"] for row in dev} & {row["query_id"] for row in rest}
    curate.run(config)
    assert not config.path("dev").exists()


def test_nothing_left_to_train_on_is_an_error(config: Config) -> None:
    write_parquet(pa.table({"query_id": ["q1"], "item_id": ["i6"], "grade": [1]}), config.path("qrels"))
    with pytest.raises(DataError, match="nothing left to train on"):
        curate.run(config)


@pytest.mark.slow
def test_other_brands_and_banned_words_are_dropped_and_counted(config: Config) -> None:
    items = pq.read_table(config.path("items")).to_pylist()
    shoes = {"i7": ("nike pegasus running shoe", "Nike"), "i8": ("adidas runner", "adidas"), "i9": ("sneaker", None)}
    rows = [{"item_id": item, "title": title, "brand": brand} for item, (title, brand) in shoes.items()]
    write_parquet(pa.Table.from_pylist([*rows, *items]), config.path("items"))
    reasoning = "nike pegasus, adidas trainers, sneaker, Cheap sneaker, running shoe"
    add_rows(config.path("queries"), [{"query_id": "q5", "query": "adidas trainers", "split": "train"}])
    add_rows(config.path("teacher"), [{"query_id": "q5", "reasoning": reasoning}])
    add_rows(config.path("qrels"), [{"query_id": "q5", "item_id": item, "grade": 1} for item in ("i8", "i9")])
    guarded = with_settings(config, banned=["cheap"])
    curate.run(guarded)
    row = decided_rows(guarded)["q5"]
    # the query retrieves i8; the keywords add i9, which is relevant, and i7, which is not
    assert (row["reasoning"], row["outcome"], row["items"]) == ("sneaker, running shoe", "kept", ["i9", "i8"])
    assert datasheet(guarded)["phrases"] == {
        **{"written": 10, "dropped: banned": 1, "dropped: another brand": 1},
        "dropped: of the query": 3,  # "adidas trainers", "bike" of q1 and "bell" of q4
    }
    unguarded = with_settings(config, brand_column="maker")  # the catalogue has no such column
    curate.run(unguarded)
    # in order: in a relevant title; in none; in others, which are no evidence for it
    assert decided_rows(unguarded)["q5"]["reasoning"] == "sneaker, cheap sneaker, nike pegasus, running shoe"


@pytest.mark.slow
def test_items_are_relevant_from_a_grade_on(config: Config) -> None:
    rows = pq.read_table(config.path("qrels")).to_pylist()
    graded = [row | {"grade": 1 if row["item_id"] == "i2" else 2} for row in rows]
    write_parquet(pa.Table.from_pylist(graded), config.path("qrels"))
    curate.run(config)
    assert sorted(decided_rows(config)["q1"]["items"]) == ["i1", "i2"]
    strict = with_settings(config, relevant_from=2)
    curate.run(strict)
    assert decided_rows(strict)["q1"]["items"] == ["i1"]


def test_near_duplicates_of_another_split_are_counted(config: Config) -> None:
    near = [("t2", "safety vest for bike riders", "test"), ("q5", "bright safety vest for bike riders", "train")]
    add_rows(config.path("queries"), [{"query_id": q, "query": text, "split": split} for q, text, split in near])
    assert curate.run(config)["queries"] == 4
    assert datasheet(config)["near-duplicates"] == {"near-duplicates": 0, "largest group": 1, NEAR_OTHERS: 1}
    assert f"1 more were {NEAR_OTHERS}." in config.path("triplets").with_name("datasheet.md").read_text()


def test_a_log_without_a_split_is_tested_with_held_out_queries(tmp_path: Path) -> None:
    names = [f"gadget{a}{b}" for a in "abcdefgh" for b in "ijklmnop"]
    tables = {
        "items": [{"item_id": name, "title": f"{name} blue"} for name in names],
        "queries": [{"query_id": f"q-{name}", "query": name} for name in names],
        "qrels": [{"query_id": f"q-{name}", "item_id": name, "grade": 1} for name in names],
    }
    for file, rows in tables.items():
        write_parquet(pa.Table.from_pylist(rows), tmp_path / f"world/{file}.parquet")
    config = load_config(None, [f"run_dir={tmp_path}", "curate.teacher=catalogue", "ray.num_cpus=4"])
    counters = curate.run(config)
    held_out = pq.read_table(config.path("test"))["query_id"].to_pylist()
    files = [pq.read_table(config.path(name)) for name in ("triplets", "rl_pairs")]
    trained = {query for table in files for query in table["query_id"].to_pylist()}
    assert 1 <= len(held_out) == counters["test"] <= 16  # about a tenth of 64
    test = inputs.test_set(config)
    assert (sorted(test.queries), test.left_out) == (sorted(held_out), 0)
    assert trained | set(held_out) == {f"q-{name}" for name in names}
    assert not trained & set(held_out)
    curate.run(with_settings(config, test_share=0.0))
    assert not config.path("test").exists()
    with pytest.raises(DataError, match=r"was trained on.*curate\.test_share=0\.1"):
        inputs.test_set(config)
    add_rows(config.path("queries"), [{"query_id": "q-new", "query": "something blue"}])
    add_rows(config.path("qrels"), [{"query_id": "q-new", "item_id": names[0], "grade": 1}])
    later = inputs.test_set(config)
    assert (list(later.queries), later.left_out) == (["q-new"], 64)
