"""Keyword rules, the difference set, and curation of a catalogue small enough to check by hand."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.config import Config, load_config
from lrem.curation.rules import Rules, clean, difference, expand
from lrem.files import write_parquet
from lrem.schema import DataError
from ray_apps import curate
from ray_apps.cluster import cluster
from ray_apps.durable import read_parts

TITLES = {
    "i1": "steel helmet",
    "i2": "leather gloves",
    "i3": "paper bike poster",
    "i4": "bike bell",
    "i5": "reflective vest",
    "i6": "tin soup",
}


def test_clean() -> None:
    assert (
        clean("Helmet , gloves,helmet,, bike ride, knife", "ride a bike", Rules(frozenset({"knife"})))
        == "helmet, gloves"
    )
    assert clean("", "tea") == ""
    assert clean("tea pot", "tea") == "tea pot"


def test_difference_and_expand() -> None:
    assert difference(["a", "b"], ["c", "b", "d"]) == ["c", "d"]
    assert difference(["a"], []) == []
    assert expand("ride a bike", "helmet, gloves") == "ride a bike (helmet, gloves)"
    assert expand("tea", "") == "tea"


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


def test_difference_set_and_rules_by_hand(config: Config) -> None:
    curate.run(config)
    rows = {
        row["query_id"]: row
        for table in read_parts(curate.work_folder(config) / "decided")
        for row in table.to_pylist()
    }
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
    without = config.model_copy(update={"curate": config.curate.model_copy(update={"keep_untaught": False})})
    assert curate.run(without)["no teacher"] == 1


def test_a_dev_set_is_put_aside_and_taken_back(config: Config) -> None:
    aside = config.model_copy(update={"curate": config.curate.model_copy(update={"dev_share": 0.49, "rl_share": 0.1})})
    aside = aside.model_copy(update={"seed": 5})
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
