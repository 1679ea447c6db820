"""Curation of a catalogue small enough to check by hand."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.config import Config, load_config
from lrem.curation.datasheet import NEAR_OTHERS
from lrem.data.files import write_parquet
from lrem.errors import DataError
from ray_apps.cluster.session import cluster
from ray_apps.curation import curate
from ray_apps.curation.resumable import read_parts
from ray_apps.evaluation import inputs

TITLES = {
    "i1": "steel helmet",
    "i2": "leather gloves",
    "i3": "paper bike poster",
    "i4": "bike bell",
    "i5": "reflective vest",
    "i6": "tin soup",
}


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    with cluster(load_config(None, ["ray.num_cpus=4"])):
        yield


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """q1 needs thinking; q2's teacher leads nowhere relevant; q3 is easy; q4's teacher repeats the query."""
    queries = {"q1": "ride a bike", "q2": "soup for two", "q3": "tin soup", "q4": "bike bell", "t1": "test only"}
    split = ["train"] * 4 + ["test"]
    folder = tmp_path / "world"
    write_parquet(pa.table({"item_id": list(TITLES), "title": list(TITLES.values())}), folder / "items.parquet")
    write_parquet(
        pa.table({"query_id": list(queries), "query": list(queries.values()), "split": split}),
        folder / "queries.parquet",
    )
    teacher = {"q1": "helmet, gloves, bike", "q2": "helmet", "q3": "", "q4": "bell"}
    write_parquet(
        pa.table({"query_id": list(teacher), "reasoning": list(teacher.values())}), folder / "teacher.parquet"
    )
    judged = [("q1", "i1"), ("q1", "i2"), ("q1", "i5"), ("q2", "i6"), ("q3", "i6"), ("q4", "i4")]
    write_parquet(
        pa.table({"query_id": [q for q, _ in judged], "item_id": [i for _, i in judged], "grade": [1] * len(judged)}),
        folder / "qrels.parquet",
    )
    return load_config(
        None,
        [
            f"run_dir={tmp_path}",
            "curate.top_k=4",
            "curate.rl_share=0.5",
            "curate.difficulty.recall_below=null",
            "ray.num_cpus=4",
        ],
    )


def changed(config: Config, **change: Any) -> Config:
    return config.model_copy(update={"curate": config.curate.model_copy(update=change)})


def decided(config: Config) -> dict[str, dict[str, Any]]:
    tables = read_parts(curate.curation_run(config).folder / "decided")
    return {row["query_id"]: row for table in tables for row in table.to_pylist()}


def sheet(config: Config) -> dict[str, Any]:
    return dict(json.loads(config.path("triplets").with_name("datasheet.json").read_text()))


def add_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows behind those of a file; its columns that they lack stay empty."""
    write_parquet(pa.Table.from_pylist([*pq.read_table(file).to_pylist(), *rows]), file)


def test_difference_set_and_rules_by_hand(config: Config) -> None:
    curate.run(config)
    rows = decided(config)
    # BM25 finds i3 and i4 for "ride a bike"; helmet and gloves add i1 and i2; i5 is relevant but not reached
    assert rows["q1"]["reasoning"] == "helmet, gloves"
    assert (rows["q1"]["outcome"], sorted(rows["q1"]["items"])) == ("kept", ["i1", "i2"])
    assert rows["q2"]["outcome"] == "nothing relevant"
    assert (rows["q3"]["outcome"], rows["q3"]["items"]) == ("kept without reasoning", ["i6"])
    assert (rows["q4"]["reasoning"], rows["q4"]["items"]) == ("", ["i4"])


def test_the_stage_writes_every_row_once(config: Config) -> None:
    counts = curate.run(config)
    triplets = pq.read_table(config.path("triplets")).to_pylist()
    pairs = pq.read_table(config.path("rl_pairs")).to_pylist()
    found = sorted((row["query_id"], row["item_id"]) for row in triplets + pairs)
    assert found == [("q1", "i1"), ("q1", "i2"), ("q3", "i6"), ("q4", "i4")]
    assert not {row["query_id"] for row in triplets} & {row["query_id"] for row in pairs}
    assert (counts["queries"], counts["kept"], counts["nothing relevant"]) == (4, 1, 1)
    assert counts["triplets"] + counts["rl_pairs"] == 4
    assert all(row["title"] == TITLES[row["item_id"]] for row in triplets + pairs)
    again = curate.run(config)
    assert again == counts
    assert pq.read_table(config.path("triplets")).to_pylist() == triplets


def test_judged_queries_without_a_teacher_are_left_to_reinforcement(config: Config) -> None:
    teacher = pq.read_table(config.path("teacher")).slice(1)  # q1 is not explained; i5 and its like are relevant
    write_parquet(teacher, config.path("teacher"))
    counts = curate.run(config)
    pairs = [row for row in pq.read_table(config.path("rl_pairs")).to_pylist() if row["query_id"] == "q1"]
    assert sorted(row["item_id"] for row in pairs) == ["i1", "i2", "i5"]
    assert counts["kept without a teacher"] == 1
    assert "q1" not in pq.read_table(config.path("triplets"))["query_id"].to_pylist()
    assert curate.run(changed(config, keep_untaught=False))["no teacher"] == 1


@pytest.mark.slow
def test_a_dev_set_is_put_aside_and_taken_back(config: Config) -> None:
    aside = changed(config, dev_share=0.49, rl_share=0.1).model_copy(update={"seed": 5})
    counts = curate.run(aside)
    dev = pq.read_table(aside.path("dev")).to_pylist()
    rest = [row for name in ("triplets", "rl_pairs") for row in pq.read_table(aside.path(name)).to_pylist()]
    assert counts["dev"] == len(dev) > 0
    assert len(dev) + len(rest) == 4
    assert not {row["query_id"] for row in dev} & {row["query_id"] for row in rest}
    curate.run(config)
    assert not config.path("dev").exists()


def test_nothing_to_learn_from_is_said(config: Config) -> None:
    path = config.path("qrels")
    write_parquet(pa.table({"query_id": ["q1"], "item_id": ["i6"], "grade": [1]}), path)
    with pytest.raises(DataError, match="nothing left to train on"):
        curate.run(config)


@pytest.mark.slow
def test_other_brands_and_banned_words_are_dropped_and_counted(config: Config) -> None:
    items = pq.read_table(config.path("items")).to_pylist()
    shoes = {"i7": ("nike pegasus running shoe", "Nike"), "i8": ("adidas runner", "adidas"), "i9": ("sneaker", None)}
    rows = [{"item_id": item, "title": title, "brand": brand} for item, (title, brand) in shoes.items()]
    write_parquet(pa.Table.from_pylist([*rows, *items]), config.path("items"))
    said = "nike pegasus, adidas trainers, sneaker, Cheap sneaker, running shoe"
    add_rows(config.path("queries"), [{"query_id": "q5", "query": "adidas trainers", "split": "train"}])
    add_rows(config.path("teacher"), [{"query_id": "q5", "reasoning": said}])
    add_rows(config.path("qrels"), [{"query_id": "q5", "item_id": item, "grade": 1} for item in ("i8", "i9")])
    guarded = changed(config, banned=["cheap"])
    curate.run(guarded)
    row = decided(guarded)["q5"]
    # the query finds i8; the keywords add i9, which is relevant, and i7, which is not
    assert (row["reasoning"], row["outcome"], row["items"]) == ("sneaker, running shoe", "kept", ["i9"])
    assert sheet(guarded)["phrases"] == {
        **{"written": 10, "dropped: banned": 1, "dropped: another brand": 1},
        "dropped: of the query": 3,  # "adidas trainers", "bike" of q1 and "bell" of q4
    }
    unguarded = changed(config, brand_column="maker")  # the catalogue has no such column
    curate.run(unguarded)
    assert decided(unguarded)["q5"]["reasoning"] == "nike pegasus, sneaker, cheap sneaker, running shoe"


@pytest.mark.slow
def test_relevant_is_what_has_the_grade(config: Config) -> None:
    rows = pq.read_table(config.path("qrels")).to_pylist()
    graded = [row | {"grade": 1 if row["item_id"] == "i2" else 2} for row in rows]
    write_parquet(pa.Table.from_pylist(graded), config.path("qrels"))
    curate.run(config)
    assert sorted(decided(config)["q1"]["items"]) == ["i1", "i2"]
    strict = changed(config, relevant_from=2)
    curate.run(strict)
    assert decided(strict)["q1"]["items"] == ["i1"]


def test_near_duplicates_of_another_split_are_counted(config: Config) -> None:
    near = [("t2", "safety vest for bike riders", "test"), ("q5", "bright safety vest for bike riders", "train")]
    add_rows(config.path("queries"), [{"query_id": q, "query": text, "split": split} for q, text, split in near])
    assert curate.run(config)["queries"] == 4
    assert sheet(config)["near-duplicates"] == {"near-duplicates": 0, "largest group": 1, NEAR_OTHERS: 1}
    assert f"1 more were {NEAR_OTHERS}." in config.path("triplets").with_name("datasheet.md").read_text()


def test_a_log_without_a_split_is_tested_by_what_was_kept_apart(tmp_path: Path) -> None:
    names = [f"gadget{a}{b}" for a in "abcdefgh" for b in "ijklmnop"]
    tables = {
        "items": [{"item_id": name, "title": f"{name} blue"} for name in names],
        "queries": [{"query_id": f"q-{name}", "query": name} for name in names],
        "qrels": [{"query_id": f"q-{name}", "item_id": name, "grade": 1} for name in names],
    }
    for file, rows in tables.items():
        write_parquet(pa.Table.from_pylist(rows), tmp_path / f"world/{file}.parquet")
    config = load_config(None, [f"run_dir={tmp_path}", "curate.teacher=catalogue", "ray.num_cpus=4"])
    counts = curate.run(config)
    kept = pq.read_table(config.path("test"))["query_id"].to_pylist()
    files = [pq.read_table(config.path(name)) for name in ("triplets", "rl_pairs")]
    trained = {query for table in files for query in table["query_id"].to_pylist()}
    assert 1 <= len(kept) == counts["test"] <= 16  # about a tenth of 64
    test = inputs.test_set(config)
    assert (sorted(test.queries), test.left_out) == (sorted(kept), 0)
    assert trained | set(kept) == {f"q-{name}" for name in names}
    assert not trained & set(kept)
    curate.run(changed(config, test_share=0.0))
    assert not config.path("test").exists()
    with pytest.raises(DataError, match=r"was trained on: keep some apart .*curate\.test_share=0\.1"):
        inputs.test_set(config)
    add_rows(config.path("queries"), [{"query_id": "q-new", "query": "something blue"}])
    add_rows(config.path("qrels"), [{"query_id": "q-new", "item_id": names[0], "grade": 1}])
    later = inputs.test_set(config)
    assert (list(later.queries), later.left_out) == (["q-new"], 64)
