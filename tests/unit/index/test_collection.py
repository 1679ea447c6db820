"""A collection compared with a dictionary and with brute force."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrem.errors import ItemError, StoreError
from lrem.index.collection import Collection

DIMENSION = 16


def unit(rows: int, dimension: int = DIMENSION, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def open_collection(folder: Path, **options: Any) -> Collection:
    return Collection(folder / "items", "model-a", DIMENSION, **options)


VECTORS = unit(40)
IDS = [f"p{i}" for i in range(8)]
STEPS = st.one_of(
    st.tuples(st.just("upsert"), st.lists(st.tuples(st.sampled_from(IDS), st.integers(0, 39)), max_size=4)),
    st.tuples(st.just("delete"), st.lists(st.sampled_from(IDS), max_size=3)),
    st.tuples(st.just("reopen"), st.booleans()),
    st.tuples(st.just("rebuild"), st.none()),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=10), query=st.integers(0, 39), number=st.integers(0, 100_000))
def test_equals_a_dictionary(tmp_path: Path, steps: list[Any], query: int, number: int) -> None:
    folder = tmp_path / f"{number}-{os.urandom(4).hex()}"
    collection, model = open_collection(folder), dict[str, int]()
    for action, argument in steps:
        if action == "upsert":
            new = len({item_id for item_id, _ in argument} - set(model))
            ids, which = [item_id for item_id, _ in argument], [i for _, i in argument]
            payloads = [{"title": f"title {i}", "even": i % 2 == 0} for i in which]
            assert collection.upsert(ids, payloads, VECTORS[which]) == new
            model |= dict(argument)
        elif action == "delete":
            assert collection.delete(argument) == len(set(argument) & set(model))
            model = {item_id: i for item_id, i in model.items() if item_id not in argument}
        elif action == "rebuild":
            collection.rebuild()
        else:
            if argument:
                collection.save()
            collection.close()
            collection = open_collection(folder)
        check(collection, model, VECTORS[query])
    collection.close()


def check(collection: Collection, model: dict[str, int], query: np.ndarray) -> None:
    assert len(collection) == len(model) == collection.count()
    stored = collection.get(IDS)
    assert {item_id: item.payload["title"] for item_id, item in stored.items()} == {
        item_id: f"title {i}" for item_id, i in model.items()
    }
    for where, matches in ((None, lambda i: True), ({"even": True}, lambda i: i % 2 == 0)):
        expected = {item_id: float(VECTORS[i] @ query) for item_id, i in model.items() if matches(i)}
        [hits] = collection.search(query[None], 5, where)
        assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True)[:5], abs=1e-5)
        assert all(hit.score == pytest.approx(expected[hit.item_id], abs=1e-5) for hit in hits)
        assert collection.count(where) == len(expected)
        first = collection.scroll(3, where=where)
        rest = collection.scroll(100, first.after, where) if first.after is not None else first._replace(items=[])
        assert [item_id for item_id, _ in first.items + rest.items] == sorted(expected)


def test_growth_and_tombstones_start_a_rebuild(tmp_path: Path) -> None:
    collection = open_collection(tmp_path, factory="IVF8,Flat")
    assert collection.stats()["factory"] == "Flat"
    vectors = unit(4000, seed=3)
    collection.upsert([f"p{i}" for i in range(4000)], [{}] * 4000, vectors)
    collection.wait(60)
    assert collection.stats()["factory"] == "IVF8,Flat"
    collection.delete([f"p{i}" for i in range(2000)])
    collection.wait(60)
    stats = collection.stats()
    assert (stats["items"], stats["tombstones"]) == (2000, 0)
    assert collection.search(vectors[3000:3001], 1)[0][0].item_id == "p3000"
    collection.close()


def test_writes_searches_and_rebuilds_run_concurrently(tmp_path: Path) -> None:
    collection, vectors = open_collection(tmp_path), unit(200, seed=5)
    ids = [f"p{i}" for i in range(200)]
    collection.upsert(ids, [{"version": 0}] * 200, vectors)

    def write(version: int) -> None:
        collection.upsert(ids, [{"version": version}] * 200, vectors)

    def read(_: int) -> None:
        for row, hits in enumerate(collection.search(vectors, 1)):
            assert hits[0].item_id == ids[row]

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(write, version) for version in range(1, 25)]
        futures += [pool.submit(read, i) for i in range(60)] + [pool.submit(lambda _: collection.rebuild(), 0)]
        for future in futures:
            future.result(60)
    assert len(collection) == 200
    collection.close()


def test_another_model_is_refused(tmp_path: Path) -> None:
    open_collection(tmp_path).close()
    with pytest.raises(StoreError, match="model-a.*model-b"):
        Collection(tmp_path / "items", "model-b", DIMENSION)
    with pytest.raises(StoreError, match="dimension 16.*dimension 8"):
        Collection(tmp_path / "items", "model-a", 8)
    with pytest.raises(StoreError, match="holds no collection"):
        Collection(tmp_path / "nothing")
    again = Collection(tmp_path / "items")
    assert (again.model, again.dimension, len(again), again.search(VECTORS[:2], 5)) == ("model-a", 16, 0, [[], []])
    again.close()


def test_two_open_collections_see_each_others_writes(tmp_path: Path) -> None:
    one, other = open_collection(tmp_path), open_collection(tmp_path)
    assert one.upsert(IDS, [{"by": "one"}] * 8, VECTORS[:8]) == 8
    assert other.upsert(["p0", "new"], [{"by": "other"}] * 2, VECTORS[[20, 21]]) == 1  # "new" only
    assert one.delete(["p1", "new"]) == 2
    one.rebuild()
    for collection in (one, other):
        assert collection.count() == len(collection) == 7
        assert collection.count({"by": "other"}) == 1
        assert [hits[0].item_id for hits in collection.search(VECTORS[[20, 2, 7]], 1)] == ["p0", "p2", "p7"]
    one.close()
    assert other.upsert(["p1"], [{}], VECTORS[1:2]) == 1
    assert other.search(VECTORS[1:2], 1)[0][0].item_id == "p1"
    other.close()


def test_deletions_that_are_no_longer_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrem.index.store.REMEMBERED_DELETIONS", 2)
    one, other = open_collection(tmp_path), open_collection(tmp_path)
    one.upsert(IDS, [{}] * 8, VECTORS[:8])
    assert other.count() == 8
    for item_id in IDS[:5]:
        one.delete([item_id])
    assert one.store.deletions_after(0) is None
    assert one.store.deletions_after(3) is not None
    assert [hit.item_id for hit in other.search(VECTORS[:1], 8)[0]] == [
        hit.item_id for hit in one.search(VECTORS[:1], 8)[0]
    ]
    assert other.count() == 3
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("ids", "payload", "scale", "fact"),
    [
        ([""], {}, 1.0, "1 to 512 characters"),
        (["x" * 513], {}, 1.0, "1 to 512 characters"),
        ([7], {}, 1.0, "item_id 7"),
        (["\ud800"], {}, 1.0, "JSON"),
        (["a"], {"price": float("nan")}, 1.0, "item 'a': .*JSON"),
        (["a"], {"when": {1, 2}}, 1.0, "JSON"),
        (["a"], ["title"], 1.0, "not an object"),
        (["a"], {"deep": json.loads("[" * 17 + "]" * 17)}, 1.0, "nested 16 deep"),
        (["a"], {f"f{i}": i for i in range(257)}, 1.0, "at most 256 fields"),
        (["a"], {"long": "x" * 70_000}, 1.0, "at most 65536 bytes"),
        (["a"], {"uid": 2**53 + 1}, 1.0, "'uid' .*2\\^53"),
        (["a"], {"uids": [1, 10**400]}, 1.0, "'uids'"),
        (["a"], {}, 2.0, "item 'a': .*length 2.000"),
        (["a"], {}, float("nan"), "length nan"),
        (["a", "b"], {}, 1.0, "2 ids, 1 payloads and 1 vectors"),
    ],
)
def test_invalid_items_are_refused(tmp_path: Path, ids: list[Any], payload: Any, scale: float, fact: str) -> None:
    collection = open_collection(tmp_path)
    with pytest.raises(ItemError, match=fact):
        collection.upsert(ids, [payload], VECTORS[:1] * scale)
    with pytest.raises(ItemError, match="16 dimensions"):
        collection.upsert(["a"], [{}], unit(1, 8))
    with pytest.raises(ValueError, match="16"):
        collection.search(unit(1, 8), 3)
    assert len(collection) == 0
    collection.close()


def test_a_rebuild_while_items_are_replaced_and_deleted(tmp_path: Path) -> None:
    """The structure is trained on items that change during the training."""
    collection, vectors = open_collection(tmp_path, factory="IVF8,Flat"), unit(2000, seed=6)
    ids = [f"p{i}" for i in range(2000)]
    collection.upsert(ids, [{}] * 2000, vectors)

    def churn(part: int) -> None:
        for start in range(part, 1000, 40):
            collection.upsert(ids[start : start + 20], [{"again": True}] * 20, vectors[start : start + 20])
            collection.delete(ids[1000 + start : 1005 + start])

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(churn, 0), pool.submit(churn, 20)]
        futures += [pool.submit(collection.rebuild) for _ in range(4)]
        for future in futures:
            future.result(120)
    collection.wait(60)
    remaining = [i for i in range(2000) if i < 1000 or i % 20 >= 5]
    assert len(collection) == len(remaining) == len(collection.get(ids))
    assert [hits[0].item_id for hits in collection.search(vectors[remaining], 1)] == [ids[i] for i in remaining]
    collection.close()


def test_invalid_queries_are_refused(tmp_path: Path) -> None:
    collection = open_collection(tmp_path)
    collection.upsert(IDS, [{"n": 1}] * 8, VECTORS[:8])
    with pytest.raises(ValueError, match="not finite"):
        collection.search(VECTORS[:1] * np.nan, 3)
    with pytest.raises(ValueError, match="at least 1"):
        collection.search(VECTORS[:1], 0)
    with pytest.raises(ValueError, match="at least 1"):
        collection.scroll(0)
    assert collection.search(VECTORS[:0], 3) == []
    assert len(collection.search(VECTORS[:1], 10**9, {"n": 1})[0]) == 8
    assert collection.get(["\ud800"]) == {}
    assert collection.delete(["\ud800"]) == 0
    collection.close()


def test_filters_see_the_payload_as_stored(tmp_path: Path) -> None:
    collection = open_collection(tmp_path)
    collection.upsert(["a"], [{7: "x", "price": True, "at": (1, 2)}], VECTORS[:1])
    assert collection.count({"7": "x"}) == collection.count({"at": 2}) == collection.count({"price": True}) == 1
    collection.close()
