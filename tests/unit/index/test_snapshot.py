"""Snapshots of a live collection: restored completely, or refused."""

import threading
from pathlib import Path

import numpy as np
import pytest

from lrem.errors import SnapshotError
from lrem.index.collection import Collection
from lrem.index.snapshot import restore, write_snapshot

DIMENSION = 16
IDS = [f"p{i}" for i in range(8)]
VECTORS = np.random.default_rng(0).normal(size=(40, DIMENSION)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)


def open_collection(folder: Path) -> Collection:
    return Collection(folder / "items", "model-a", DIMENSION)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_snapshot_is_restored(tmp_path: Path, scheme: str) -> None:
    collection = open_collection(tmp_path)
    collection.upsert(IDS, [{"n": i} for i in range(8)], VECTORS[:8])
    collection.delete(["p3"])
    collection.save()
    collection.upsert(["late"], [{"n": 99}], VECTORS[9:10])
    manifest = write_snapshot(collection, f"{scheme}{tmp_path}/backup")
    assert (manifest["model"], manifest["dimension"]) == ("model-a", DIMENSION)
    with pytest.raises(SnapshotError, match="backup"):
        write_snapshot(collection, tmp_path / "backup")
    collection.upsert(["after"], [{}], VECTORS[10:11])
    expected = collection.search(VECTORS[:8], 5, {"n": {"$exists": True}})
    collection.close()
    with pytest.raises(SnapshotError, match="model-a.*model-b"):
        restore(f"{scheme}{tmp_path}/backup", tmp_path / "again", "model-b")
    assert restore(f"{scheme}{tmp_path}/backup", tmp_path / "again", "model-a") == manifest
    with pytest.raises(SnapshotError, match="again"):
        restore(tmp_path / "backup", tmp_path / "again")
    again = Collection(tmp_path / "again", "model-a", DIMENSION)
    assert sorted(again.get([*IDS, "late", "after"])) == sorted({*IDS, "late"} - {"p3"})
    assert again.search(VECTORS[:8], 5) == expected
    again.close()


@pytest.mark.parametrize(
    "name", ["items.sqlite", "ann/index.faiss", "ann/rows.npy", "ann/manifest.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["altered", "cut", "missing"])
def test_a_damaged_snapshot_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    collection = open_collection(tmp_path)
    collection.upsert(IDS, [{}] * 8, VECTORS[:8])
    write_snapshot(collection, tmp_path / "backup")
    collection.close()
    file = tmp_path / "backup" / name
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content if damage == "altered" else file.read_bytes()[:-5])
    with pytest.raises(SnapshotError):
        restore(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_invalid_address_is_named(tmp_path: Path) -> None:
    collection = open_collection(tmp_path)
    with pytest.raises(SnapshotError, match="nowhere://bucket/backup"):
        write_snapshot(collection, "nowhere://bucket/backup")
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match="file/backup"):
        write_snapshot(collection, tmp_path / "file/backup")
    with pytest.raises(SnapshotError, match="nothing"):
        restore(tmp_path / "nothing", tmp_path / "again")
    collection.close()


def test_a_manifest_of_another_model_is_refused(tmp_path: Path) -> None:
    """The manifest has no checksum: its model is compared with that of the items."""
    collection = open_collection(tmp_path)
    collection.upsert(IDS, [{}] * 8, VECTORS[:8])
    write_snapshot(collection, tmp_path / "backup")
    collection.close()
    manifest = tmp_path / "backup/manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("model-a", "model-b"))
    with pytest.raises(SnapshotError, match="manifest.json.*model-a"):
        restore(tmp_path / "backup", tmp_path / "again", "model-b")
    for other in ("[]", "{}", text.replace('"format": 2', '"format": 1')):
        manifest.write_text(other)
        with pytest.raises(SnapshotError, match="format 2"):
            restore(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_snapshot_during_writes_is_consistent(tmp_path: Path) -> None:
    collection = open_collection(tmp_path)
    collection.upsert(IDS, [{"round": 0}] * 8, VECTORS[:8])
    stop = threading.Event()

    def write() -> None:
        done = 0
        while not stop.is_set():
            done += 1
            collection.upsert(IDS, [{"round": done}] * 8, VECTORS[:8])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for i in range(5):
            write_snapshot(collection, tmp_path / f"backup-{i}")
    finally:
        stop.set()
        writer.join(60)
    for i in range(5):
        restore(tmp_path / f"backup-{i}", tmp_path / f"again-{i}")
        again = Collection(tmp_path / f"again-{i}")
        items = again.get(IDS)
        assert len({item.payload["round"] for item in items.values()}) == 1, "half of a write"
        assert [hits[0].item_id for hits in again.search(VECTORS[:8], 1)] == IDS
        again.close()
    collection.close()
