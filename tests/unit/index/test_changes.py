"""The writes to a shard since it was restored, as they are carried to a newer index."""

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


def all_changes(shard: Collection, watermark: changes.Watermark, limit: int) -> tuple[dict[str, int], list[str]]:
    """Return all changes since a watermark, read a few at a time and applied in order."""
    upserted: dict[str, int] = {}
    while True:
        part = changes.changes_since(shard.store, watermark, limit)
        upserted |= {item_id: payload["v"] for item_id, payload in part.upserted}
        watermark = part.watermark
        if len(part.upserted) < limit:
            assert changes.changes_since(shard.store, watermark, limit) == ([], [], watermark)
            return upserted, sorted(part.deleted)


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_upserts_and_deletions_are_carried(shard: Collection, limit: int) -> None:
    assert changes.count_pending(shard.folder) == 0
    shard.upsert(["p1", "new", "gone"], [{"v": 1}] * 3, VECTORS[:3])
    shard.delete(["p2", "gone", "p3"])
    shard.upsert(["p3", "p1"], [{"v": 2}] * 2, VECTORS[:2])
    assert all_changes(shard, changes.start_watermark(shard.folder), limit) == (
        {"new": 1, "p3": 2, "p1": 2},
        ["gone", "p2"],
    )
    assert changes.count_pending(shard.folder) > 0
    shard.close()


def test_carried_changes_are_not_pending(shard: Collection) -> None:
    """Carrying again still begins at the start."""
    shard.upsert(["new"], [{"v": 1}], VECTORS[6:7])
    changes.record_carried(
        shard.folder, changes.changes_since(shard.store, changes.start_watermark(shard.folder), 100).watermark
    )
    assert changes.count_pending(shard.folder) == 0
    shard.delete(["p0"])
    assert changes.count_pending(shard.folder) == 1
    assert all_changes(shard, changes.start_watermark(shard.folder), 100) == ({"new": 1}, ["p0"])
    shard.close()


def test_too_many_deletions_to_carry(shard: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrem.index.store.REMEMBERED_DELETIONS", 2)
    for item_id in IDS[:4]:
        shard.delete([item_id])
    with pytest.raises(StoreError, match="deletions"):
        changes.changes_since(shard.store, changes.start_watermark(shard.folder), 100)
    shard.close()
