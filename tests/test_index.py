"""The index: exact against brute force, and a snapshot that is whole, ours and of this model, or refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lrem.index import SnapshotError, VectorIndex, ann, load, save
from lrem.index.filters import parse


def unit(rows: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def catalogue(rows: int) -> pa.Table:
    return pa.table(
        {
            "item_id": [f"p{i}" for i in range(rows)],
            "title": [f"title {i}" for i in range(rows)],
            "price": [float(i) for i in range(rows)],
        }
    )


@pytest.fixture
def index() -> VectorIndex:
    return VectorIndex.build(catalogue(300), unit(300), "model-a")


@pytest.mark.parametrize("factory", ["Flat", "HNSW32"])
def test_search_equals_brute_force(factory: str) -> None:
    vectors, queries = unit(300), unit(20, seed=1)
    index = VectorIndex.build(catalogue(300), vectors, "m", factory)
    similarities = queries @ vectors.T
    for row, hits in enumerate(index.search(queries, 5)):
        best = np.argsort(-similarities[row])[:5]
        assert [hit.item_id for hit in hits] == [f"p{i}" for i in best]
        assert [hit.score for hit in hits] == pytest.approx(similarities[row][best].tolist(), abs=1e-5)
        assert hits[0].payload == {"title": f"title {best[0]}", "price": float(best[0])}
    assert [[i for i, _ in row] for row in index.search_ids(queries, 5)] == [
        [hit.item_id for hit in hits] for hits in index.search(queries, 5)
    ]


@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF4,Flat", "IVF4,PQ4x4", "SQ8", "PQ4x4", "IVF4,Flat,RFlat"])
def test_a_filtered_search_equals_brute_force(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "SCANNED", 10)  # so that the structure itself is searched under the filter
    vectors, queries = unit(300), unit(20, seed=1)
    index = VectorIndex.build(catalogue(300), vectors, "m", factory)
    similarities = queries @ vectors.T
    similarities[:, 100:] = -np.inf
    found = index.search(queries, 5, parse({"price": {"$lt": 100}}))
    assert all(hit.payload["price"] < 100 for hits in found for hit in hits)
    if factory in ("Flat", "HNSW32", "IVF4,Flat"):  # the others keep approximate vectors
        assert [[hit.item_id for hit in hits] for hits in found] == [
            [f"p{i}" for i in row] for row in np.argsort(-similarities, axis=1)[:, :5]
        ]
    assert index.search(queries[:1], 5, parse({"price": -1})) == [[]]


def test_nan_is_no_value() -> None:
    items = catalogue(3).set_column(2, "price", pa.array([1.0, float("nan"), None]))
    index = VectorIndex.build(items, unit(3), "m")
    assert [hit.item_id for hit in index.search(unit(1), 3, parse({"price": {"$exists": True}}))[0]] == ["p0"]


def test_more_than_there_is(index: VectorIndex) -> None:
    assert len(index.search(unit(1), 1000)[0]) == 300


def test_a_snapshot_comes_back(index: VectorIndex, tmp_path: Path) -> None:
    manifest = save(index, tmp_path / "index")
    assert (manifest["model"], manifest["count"], manifest["dimension"]) == ("model-a", 300, 16)
    loaded = load(tmp_path / "index", "model-a")
    assert loaded.search(unit(3, 2), 4) == index.search(unit(3, 2), 4)
    save(VectorIndex.build(catalogue(2), unit(2), "model-b"), tmp_path / "index")
    assert len(load(tmp_path / "index")) == 2


def test_another_models_snapshot_is_refused(index: VectorIndex, tmp_path: Path) -> None:
    save(index, tmp_path / "index")
    with pytest.raises(SnapshotError, match="model-a.*model-b"):
        load(tmp_path / "index", "model-b")


@pytest.mark.parametrize("name", ["items.parquet", "index.faiss"])
def test_a_damaged_snapshot_is_refused(index: VectorIndex, tmp_path: Path, name: str) -> None:
    save(index, tmp_path / "index")
    file = tmp_path / "index" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(SnapshotError, match="damaged"):
        load(tmp_path / "index")
    file.unlink()
    with pytest.raises(SnapshotError, match="damaged"):
        load(tmp_path / "index")


def test_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="lrem index"):
        load(tmp_path)


def test_bad_vectors_and_factories() -> None:
    vectors = unit(3)
    vectors[1] *= 2
    with pytest.raises(ValueError, match="'p1' has length 2"):
        VectorIndex.build(catalogue(3), vectors, "m")
    with pytest.raises(ValueError, match="index.factory=Flat"):
        VectorIndex.build(catalogue(3), unit(3), "m", "IVF100,Flat")
    with pytest.raises(ValueError, match="index.factory=Flat"):
        VectorIndex.build(catalogue(3), unit(3), "m", "Nonsense")
    with pytest.raises(ValueError, match="embed the catalogue again"):
        VectorIndex.build(catalogue(4), unit(3), "m")


def test_a_manifest_is_plain_json(index: VectorIndex, tmp_path: Path) -> None:
    save(index, tmp_path / "index")
    manifest = json.loads((tmp_path / "index/manifest.json").read_text())
    assert set(manifest) == {"model", "factory", "dimension", "count", "sha256"}
