"""What was written to a shard since it was filled, as a newer index is told."""

from pathlib import Path

import numpy as np
import pytest

from lrem.errors import StoreError
from lrem.index import Collection, changes
from lrem.index.bulk_load import ItemBatch, build_snapshot, restore_shard

VECTORS = np.eye(8, dtype=np.float32)
IDS = [f"p{i}" for i in range(6)]


@pytest.fixture
def shard(tmp_path: Path) -> Collection:
    build_snapshot(tmp_path / "snapshot", [ItemBatch(IDS, [{"v": 0}] * 6, VECTORS[:6])], "m", 8)
    restore_shard(tmp_path / "snapshot", tmp_path / "shard", "m", 0, 1)
    return Collection(tmp_path / "shard")


def everything(shard: Collection, state: changes.Watermark, limit: int) -> tuple[dict[str, int], list[str]]:
    """All changes since a state, asked for a few at a time, applied in order."""
    came: dict[str, int] = {}
    while True:
        found = changes.changes_since(shard.store, state, limit)
        came |= {item_id: payload["v"] for item_id, payload in found.upserted}
        state = found.state
        if len(found.upserted) < limit:
            assert changes.changes_since(shard.store, state, limit) == ([], [], state)
            return came, sorted(found.deleted)


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_what_came_and_went(shard: Collection, limit: int) -> None:
    assert changes.count_pending(shard.folder) == 0
    shard.upsert(["p1", "new", "gone"], [{"v": 1}] * 3, VECTORS[:3])
    shard.delete(["p2", "gone", "p3"])
    shard.upsert(["p3", "p1"], [{"v": 2}] * 2, VECTORS[:2])
    assert everything(shard, changes.start_watermark(shard.folder), limit) == (
        {"new": 1, "p3": 2, "p1": 2},
        ["gone", "p2"],
    )
    assert changes.count_pending(shard.folder) > 0
    shard.close()


def test_another_index_was_told(shard: Collection) -> None:
    """What is left behind counts from there; what is carried over still starts at the filling."""
    shard.upsert(["new"], [{"v": 1}], VECTORS[6:7])
    changes.record_carried(
        shard.folder, changes.changes_since(shard.store, changes.start_watermark(shard.folder), 100).state
    )
    assert changes.count_pending(shard.folder) == 0
    shard.delete(["p0"])
    assert changes.count_pending(shard.folder) == 1
    assert everything(shard, changes.start_watermark(shard.folder), 100) == ({"new": 1}, ["p0"])
    shard.close()


def test_too_much_went_to_be_told(shard: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrem.index.store.REMEMBERED", 2)
    for item_id in IDS[:4]:
        shard.delete([item_id])
    with pytest.raises(StoreError, match="take a snapshot"):
        changes.changes_since(shard.store, changes.start_watermark(shard.folder), 100)
    shard.close()
