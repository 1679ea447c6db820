"""The structures behind a collection: which is chosen, its recall under filters, and which are refused."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from lrem.errors import BuildError
from lrem.index import Collection, Hit
from lrem.index.ann import choose_factory, training_size
from lrem.index.bulk_load import ItemBatch, build_collection
from lrem.index.recall import measure_recall

faiss.omp_set_num_threads(1)  # in this thread, as a shard does: on a busy machine, Faiss's threads starve


def unit(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Return vectors in groups, like the items of a catalogue."""
    centres = unit(64, dimension, seed=99)
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(64, size=rows)] + 0.1 * random.normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def load(folder: Path, vectors: np.ndarray, payloads: list[dict[str, int]], factory: str) -> Collection:
    """Bulk-load items p0, p1, …, so that the structure is built in this thread."""
    parts = np.array_split(np.arange(len(vectors)), 4)
    batches = [ItemBatch([f"p{i}" for i in part], [payloads[i] for i in part], vectors[part]) for part in parts]
    build_collection(folder, batches, "m", vectors.shape[1], factory)
    collection = Collection(folder, factory=factory)
    assert collection.stats()["factory"] == factory
    return collection


def count_hits(results: list[list[Hit]], expected: list[set[str]]) -> int:
    return sum(len({hit.item_id for hit in hits} & ids) for hits, ids in zip(results, expected, strict=True))


SHARES = [0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0]


@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF32,Flat", "IVF32,PQ8x6", "RR16,IVF32,Flat"])
def test_recall_under_filters(tmp_path: Path, factory: str) -> None:
    count = 12_000  # half of it is more than what is compared exhaustively
    vectors, queries = clustered(count, 16, 1), clustered(50, 16, 2)
    ranks = np.random.default_rng(0).permutation(count)
    collection = load(tmp_path / "items", vectors, [{"rank": int(rank)} for rank in ranks], factory)
    deleted = np.arange(0, count, 20)
    collection.delete([f"p{i}" for i in deleted])
    similarities = queries @ vectors.T
    similarities[:, deleted] = -np.inf
    for share in SHARES:
        allowed = np.where(ranks < share * count, similarities, -np.inf)
        results = collection.search(queries, 10, {"rank": {"$lt": share * count}} if share < 1 else None)
        best = np.argsort(-allowed, axis=1)[:, :10]
        expected = [{f"p{i}" for i in row if line[i] > -np.inf} for row, line in zip(best, allowed, strict=True)]
        assert count_hits(results, expected) / sum(map(len, expected)) >= 0.99, share
        assert all(np.diff([hit.score for hit in hits]).max(initial=0) <= 0 for hits in results)
    collection.close()


@pytest.mark.parametrize("factory", ["HNSW32", "IVF32,Flat", "IVF32,PQ8x6"])
def test_recall_where_the_filter_excludes_the_querys_neighbourhood(tmp_path: Path, factory: str) -> None:
    """Half of the groups are allowed, and the queries come from all of them."""
    vectors, queries = clustered(12_000, 16, 1), clustered(50, 16, 2)
    group = (vectors @ unit(64, 16, seed=99).T).argmax(axis=1) % 2
    collection = load(tmp_path / "items", vectors, [{"group": int(g)} for g in group], factory)
    best = np.argsort(-np.where(group == 1, queries @ vectors.T, -np.inf), axis=1)[:, :10]
    results = collection.search(queries, 10, {"group": 1})
    assert count_hits(results, [{f"p{i}" for i in row} for row in best]) / best.size >= 0.99
    collection.close()


def test_another_factory_is_built_at_opening(tmp_path: Path) -> None:
    collection = Collection(tmp_path / "items", "m", 16, "HNSW16")
    collection.upsert([f"p{i}" for i in range(8)], [{}] * 8, unit(8, 16))
    collection.save()
    collection.close()
    again = Collection(tmp_path / "items", "m", 16, "SQ8")
    again.wait(60)
    assert again.stats()["factory"] == "Flat"  # too few to train
    again.upsert([f"q{i}" for i in range(2000)], [{}] * 2000, unit(2000, 16))
    again.wait(60)
    assert again.stats()["factory"] == "SQ8"
    assert again.search(unit(1, 16), 1)[0][0].item_id in ("p0", "q0")
    again.close()


@pytest.mark.parametrize("factory", ["Nonsense", "IVF8,Bogus", "IDMap,Flat"])
def test_an_unusable_factory_is_refused(tmp_path: Path, factory: str) -> None:
    with pytest.raises(BuildError, match="Nonsense|Bogus|IDMap"):
        Collection(tmp_path / "items", "m", 16, factory)
    Collection(tmp_path / "items", "m", 16).close()


def test_a_structure_that_fails_later_leaves_exact_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The structure can be trained but vectors cannot be added, which shows when there are items."""
    collection = Collection(tmp_path / "items", "m", 16, "IDMap,IVF4,Flat")
    vectors = unit(1500, 16)
    collection.upsert([f"p{i}" for i in range(1500)], [{}] * 1500, vectors)
    collection.wait(60)
    assert "the rebuild failed" in caplog.text
    assert collection.search(vectors[:1], 1)[0][0].item_id == "p0"
    collection.close()
    again = Collection(tmp_path / "items", "m", 16, "IDMap,IVF4,Flat")
    assert "search is exact for now" in caplog.text
    assert again.search(vectors[:1], 1)[0][0].item_id == "p0"
    again.close()


def test_choose_factory() -> None:
    assert [choose_factory(n, 256)[0] for n in (0, 50_000, 50_001, 1_999_999, 2_000_000)] == [
        "Flat",
        "Flat",
        "HNSW32",
        "HNSW32",
        "IVF4096,PQ128",
    ]
    assert choose_factory(10_000, 16, "IVF512,PQ8") == ("Flat", "10000 vectors: 'IVF512,PQ8' is built from 19968 on")
    assert [training_size(16, name) for name in ("HNSW16", "SQ8", "IVF8,Flat", "PQ8x10")] == [0, 1248, 1248, 39936]


def test_measured_recall(tmp_path: Path) -> None:
    """The measured recall is that against brute force, for a structure that searches few of many lists."""
    vectors, queries = unit(6000, 16, seed=1), unit(40, 16, seed=2)
    collection = load(tmp_path / "items", vectors, [{"even": i % 2 == 0} for i in range(6000)], "IVF128,Flat")
    measured = measure_recall(collection, queries, 10)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    hits = count_hits(collection.search(queries, 10), [{f"p{i}" for i in row} for row in best])
    assert measured.recall == pytest.approx(hits / 400, abs=0.003)
    assert 0.1 < measured.recall < 0.9
    exact = collection.search(queries, 10, exact=True)
    assert [[h.item_id for h in row] for row in exact] == [[f"p{i}" for i in row] for row in best]
    assert measure_recall(collection, queries, 10, {"even": True}).recall == 1.0  # few enough to compare all
    assert measure_recall(collection, queries, 10, {"even": "no"}).recall == 1.0
    collection.close()
