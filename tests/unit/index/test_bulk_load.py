"""Bulk-loaded collections compared with brute force, whole and divided among shards."""

from pathlib import Path

import numpy as np
import pytest

from lrem.errors import BuildError, ItemError, SnapshotError
from lrem.index import Collection
from lrem.index.bulk_load import ItemBatch, build_collection, read_batches, restore_shard
from lrem.index.shard import merge_hits, owner
from lrem.index.snapshot import open_snapshot, write_snapshot


def unit(rows: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS, QUERIES = unit(300), unit(20, seed=1)
IDS = [f"p{i}" for i in range(300)]
PAYLOADS = [{"title": f"title {i}", "price": float(i)} for i in range(300)]


def full_collection(folder: Path, factory: str | None = None) -> Collection:
    batches = [ItemBatch(IDS[i : i + 70], PAYLOADS[i : i + 70], VECTORS[i : i + 70]) for i in range(0, 300, 70)]
    build_collection(folder, batches, "model-a", 16, factory)
    return Collection(folder, factory=factory)


@pytest.mark.parametrize("factory", [None, "Flat", "HNSW32"])
def test_search_equals_brute_force(tmp_path: Path, factory: str | None) -> None:
    collection = full_collection(tmp_path / "items", factory)
    similarities = QUERIES @ VECTORS.T
    for row, hits in enumerate(collection.search(QUERIES, 5)):
        best = np.argsort(-similarities[row])[:5]
        assert [hit.item_id for hit in hits] == [f"p{i}" for i in best]
        assert [hit.score for hit in hits] == pytest.approx(similarities[row][best].tolist(), abs=1e-5)
        assert hits[0].payload == PAYLOADS[best[0]]
    assert len(collection.search(QUERIES[:1], 1000)[0]) == len(collection) == 300
    assert collection.stats()["factory"] == (factory or "Flat")
    collection.close()


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_give_the_same_top_k_as_one_index(tmp_path: Path, factory: str, shards: int) -> None:
    collection = full_collection(tmp_path / "items", factory)
    collection.delete(["p7"])
    write_snapshot(collection, tmp_path / "snapshot")
    folders = [tmp_path / f"shards/{i}" for i in range(shards)]
    for i, folder in enumerate(folders):
        restore_shard(tmp_path / "snapshot", folder, "model-a", i, shards, factory)
    parts = [Collection(folder, factory=factory) for folder in folders]
    assert sum(map(len, parts)) == 299
    for number, part in enumerate(parts):
        assert {owner(item_id, shards) for item_id, _ in part.scroll(300).items} == {number}
    results = zip(*(part.search(QUERIES, 10) for part in parts), strict=True)
    for hits, expected in zip((merge_hits(hits, 10) for hits in results), collection.search(QUERIES, 10), strict=True):
        assert [hit.item_id for hit in hits] == [hit.item_id for hit in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in expected], atol=1e-5)
    parts[0].delete([item_id for item_id, _ in parts[0].scroll(5).items])
    restore_shard(tmp_path / "snapshot", folders[0], "model-a", 0, shards, factory)  # exists: keeps what was written
    assert parts[0].count() == len(parts[0].store) == len(list(ids_of(folders[0])))
    for part in [collection, *parts]:
        part.close()


def ids_of(folder: Path) -> list[str]:
    return [item_id for batch in read_batches(folder) for item_id in batch.ids]


def test_an_opened_snapshot_is_searchable(tmp_path: Path) -> None:
    collection = full_collection(tmp_path / "items")
    write_snapshot(collection, tmp_path / "snapshot")
    expected = collection.search(QUERIES, 4, {"price": {"$lt": 100}})
    collection.close()
    loaded = open_snapshot(tmp_path / "snapshot", "model-a")
    assert loaded.search(QUERIES, 4, {"price": {"$lt": 100}}) == expected
    assert not loaded.folder.exists()
    loaded.close()
    with pytest.raises(SnapshotError, match="model-a.*model-b"):
        open_snapshot(tmp_path / "snapshot", "model-b")


def test_the_last_of_repeated_items_counts(tmp_path: Path) -> None:
    batches = [
        ItemBatch(["a", "a"], [{"v": 1}, {"v": 2}], VECTORS[:2]),
        ItemBatch(["b", "a"], [{}, {"v": 3}], VECTORS[2:4]),
    ]
    build_collection(tmp_path / "items", batches, "m", 16)
    collection = Collection(tmp_path / "items")
    assert len(collection) == 2
    assert collection.get(["a"])["a"].payload == {"v": 3}
    assert collection.search(VECTORS[3:4], 1)[0][0].item_id == "a"
    collection.close()


def test_a_collection_is_complete_or_absent(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match="'p1'.*length 2"):
        build_collection(
            tmp_path / "items",
            [ItemBatch(["p0"], [{}], VECTORS[:1]), ItemBatch(["p1"], [{}], VECTORS[1:2] * 2)],
            "m",
            16,
        )
    with pytest.raises(BuildError, match="index.factory=Flat"):
        build_collection(tmp_path / "items", [ItemBatch(["p0"], [{}], VECTORS[:1])], "m", 16, "Nonsense")
    assert list(tmp_path.iterdir()) == []
    build_collection(tmp_path / "items", [], "m", 16)
    empty = Collection(tmp_path / "items")
    assert empty.search(QUERIES[:2], 3) == [[], []]
    empty.close()
