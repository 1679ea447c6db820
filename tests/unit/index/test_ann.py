"""The structures behind a collection: which is chosen, what it finds under filters, and what cannot serve."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from lrem.errors import BuildError
from lrem.index.ann import choose_factory, training_size
from lrem.index.collection import Collection
from lrem.index.recall import measure_recall

faiss.omp_set_num_threads(1)  # as a shard does: threads that wait for each other starve on a busy machine


def unit(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Vectors that lie in groups, as items of a catalogue do."""
    centres = unit(64, dimension, seed=99)
    random = np.random.default_rng(seed)
    vectors = centres[random.integers(64, size=rows)] + 0.1 * random.normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


SHARES = [0.001, 0.01, 0.05, 0.2, 0.5, 0.9, 1.0]


@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF32,Flat", "IVF32,PQ8", "RR16,IVF32,Flat"])
def test_recall_under_filters(tmp_path: Path, factory: str) -> None:
    count = 12_000  # half of it is more than what is compared one by one
    vectors, queries = clustered(count, 16, 1), clustered(50, 16, 2)
    collection = Collection(tmp_path / "items", "m", 16, factory)
    random = np.random.default_rng(0)
    ranks = random.permutation(count)
    for part in np.array_split(np.arange(count), 4):
        collection.upsert([f"p{i}" for i in part], [{"rank": int(ranks[i])} for i in part], vectors[part])
    collection.wait(300)
    gone = np.arange(0, count, 20)
    collection.delete([f"p{i}" for i in gone])
    assert collection.stats()["factory"] == factory
    similarities = queries @ vectors.T
    similarities[:, gone] = -np.inf
    for share in SHARES:
        allowed = np.where(ranks < share * count, similarities, -np.inf)
        found = collection.search(queries, 10, {"rank": {"$lt": share * count}} if share < 1 else None)
        best = np.argsort(-allowed, axis=1)[:, :10]
        wanted = [{f"p{i}" for i in row if line[i] > -np.inf} for row, line in zip(best, allowed, strict=True)]
        hits = sum(len({h.item_id for h in row} & want) for row, want in zip(found, wanted, strict=True))
        assert hits / sum(map(len, wanted)) >= 0.99, share
        assert all(np.diff([h.score for h in row]).max(initial=0) <= 0 for row in found)
    collection.close()


@pytest.mark.parametrize("factory", ["HNSW32", "IVF32,Flat", "IVF32,PQ8"])
def test_recall_where_the_filter_excludes_the_querys_surroundings(tmp_path: Path, factory: str) -> None:
    """Half of the groups are allowed, and the queries come from all of them."""
    count = 12_000
    vectors, queries = clustered(count, 16, 1), clustered(50, 16, 2)
    group = (vectors @ unit(64, 16, seed=99).T).argmax(axis=1) % 2
    collection = Collection(tmp_path / "items", "m", 16, factory)
    collection.upsert([f"p{i}" for i in range(count)], [{"group": int(g)} for g in group], vectors)
    collection.wait(300)
    assert collection.stats()["factory"] == factory
    best = np.argsort(-np.where(group == 1, queries @ vectors.T, -np.inf), axis=1)[:, :10]
    found = collection.search(queries, 10, {"group": 1})
    hits = sum(len({h.item_id for h in row} & {f"p{i}" for i in want}) for row, want in zip(found, best, strict=True))
    assert hits / best.size >= 0.99
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
def test_a_factory_that_cannot_serve_is_refused(tmp_path: Path, factory: str) -> None:
    with pytest.raises(BuildError, match=r"index\.factory=Flat"):
        Collection(tmp_path / "items", "m", 16, factory)
    Collection(tmp_path / "items", "m", 16).close()


def test_a_structure_that_fails_later_leaves_exact_search(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It can be trained, and not be added to: seen when the items are there."""
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


def test_the_choice_of_structure() -> None:
    assert [choose_factory(n, 256)[0] for n in (0, 50_000, 50_001, 1_999_999, 2_000_000)] == [
        "Flat",
        "Flat",
        "HNSW32",
        "HNSW32",
        "IVF4096,PQ128",
    ]
    assert choose_factory(10_000, 16, "IVF512,PQ8") == ("Flat", "10000 vectors: 'IVF512,PQ8' is built from 19968 on")
    assert [training_size(16, name) for name in ("HNSW16", "SQ8", "IVF8,Flat", "PQ8x10")] == [0, 1248, 1248, 39936]


def test_recall_is_measured(tmp_path: Path) -> None:
    """Against brute force, on a structure that looks into few of many lists."""
    vectors, queries = unit(6000, 16, seed=1), unit(40, 16, seed=2)
    collection = Collection(tmp_path / "items", "m", 16, "IVF128,Flat")
    collection.upsert([f"p{i}" for i in range(6000)], [{"even": i % 2 == 0} for i in range(6000)], vectors)
    collection.wait(120)
    measured = measure_recall(collection, queries, 10)
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = collection.search(queries, 10)
    hits = sum(len({h.item_id for h in row} & {f"p{i}" for i in want}) for row, want in zip(found, best, strict=True))
    assert measured.recall == pytest.approx(hits / 400, abs=0.003)
    assert 0.1 < measured.recall < 0.9
    exact = collection.search(queries, 10, exact=True)
    assert [[h.item_id for h in row] for row in exact] == [[f"p{i}" for i in want] for want in best]
    assert measure_recall(collection, queries, 10, {"even": True}).recall == 1.0  # few enough to be compared one by one
    assert measure_recall(collection, queries, 10, {"even": "no"}).recall == 1.0
    collection.close()
