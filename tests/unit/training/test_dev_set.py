"""The dev set of a training run: what counts as relevant, and among which items it is ranked."""

from pathlib import Path

import pyarrow as pa
import pytest

from lrem.config import CheckpointConfig, load_config
from lrem.data.files import write_parquet
from lrem.data.schema import RELEVANT, TRIPLETS
from lrem.errors import DataError
from ray_apps.training import dev_set

ROW = {"query_id": "q1", "query": "red coat", "reasoning": "wool", "item_id": "p1", "title": "item 1"}


def load(folder: Path, rows: list[dict[str, object]], schema: pa.Schema) -> dev_set.DevSet:
    ids = [f"p{i}" for i in range(9)]
    write_parquet(pa.table({"item_id": ids, "title": [f"item {i}" for i in range(9)]}), folder / "items.parquet")
    write_parquet(pa.Table.from_pylist(rows, schema), folder / "dev.parquet")
    config = load_config(None, [f"paths.items={folder / 'items.parquet'}", f"paths.dev={folder / 'dev.parquet'}"])
    loaded = dev_set.load(config, CheckpointConfig(candidates=3))
    assert loaded is not None
    return loaded


def test_all_judged_items_of_the_catalogue_are_relevant(tmp_path: Path) -> None:
    rows = [ROW | {"relevant_ids": ["p1", "p3", "gone"]}, ROW | {"query": "hat", "item_id": "p5", "relevant_ids": None}]
    loaded = load(tmp_path, rows, pa.schema([*TRIPLETS, *RELEVANT]))
    assert dict(zip(loaded.queries, loaded.relevant, strict=True)) == {"red coat": {"p1", "p3"}, "hat": {"p5"}}
    assert loaded.item_ids[:3] == ["p1", "p3", "p5"]
    assert len({*loaded.item_ids}) == 6  # and three others of the catalogue
    assert load(tmp_path, [ROW], TRIPLETS).relevant == [{"p1"}]


def test_a_query_without_an_item_of_the_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dev\.parquet: query 'hat' has no positive"):
        load(tmp_path, [ROW, ROW | {"query": "hat", "item_id": "gone"}], TRIPLETS)
