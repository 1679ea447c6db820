"""A collection against a dictionary and brute force; killed while it is written to; damaged; recall under filters."""

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrem.index.collection import Collection
from lrem.index.payload import ItemError
from lrem.index.store import StoreError

DIMENSION = 16


def unit(rows: int, dimension: int = DIMENSION, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def opened(folder: Path, **options: Any) -> Collection:
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
    collection, model = opened(folder), dict[str, int]()
    for action, told in steps:
        if action == "upsert":
            new = len({item_id for item_id, _ in told} - set(model))
            ids, which = [item_id for item_id, _ in told], [i for _, i in told]
            payloads = [{"title": f"title {i}", "even": i % 2 == 0} for i in which]
            assert collection.upsert(ids, payloads, VECTORS[which]) == new
            model |= dict(told)
        elif action == "delete":
            assert collection.delete(told) == len(set(told) & set(model))
            model = {item_id: i for item_id, i in model.items() if item_id not in told}
        elif action == "rebuild":
            collection.rebuild()
        else:
            if told:
                collection.save()
            collection.close()
            collection = opened(folder)
        check(collection, model, VECTORS[query])
    collection.close()


def check(collection: Collection, model: dict[str, int], query: np.ndarray) -> None:
    assert len(collection) == len(model) == collection.count()
    stored = collection.get(IDS)
    assert {item_id: item.payload["title"] for item_id, item in stored.items()} == {
        item_id: f"title {i}" for item_id, i in model.items()
    }
    for where, fits in ((None, lambda i: True), ({"even": True}, lambda i: i % 2 == 0)):
        kept = {item_id: float(VECTORS[i] @ query) for item_id, i in model.items() if fits(i)}
        [hits] = collection.search(query[None], 5, where)
        assert [hit.score for hit in hits] == pytest.approx(sorted(kept.values(), reverse=True)[:5], abs=1e-5)
        assert all(hit.score == pytest.approx(kept[hit.item_id], abs=1e-5) for hit in hits)
        assert collection.count(where) == len(kept)
        first = collection.scroll(3, where=where)
        rest = collection.scroll(100, first.after, where) if first.after is not None else first._replace(items=[])
        assert [item_id for item_id, _ in first.items + rest.items] == sorted(kept)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from lrem.index.collection import Collection

vectors = np.load(sys.argv[2])
collection = Collection(Path(sys.argv[1]), "model-a", vectors.shape[1])
for step in range(10_000):
    chosen = [(step * 7 + i) % len(vectors) for i in range(3)]
    collection.upsert([f"p{i}" for i in chosen], [{"step": step}] * 3, vectors[chosen])
    gone = (step * 5) % len(vectors)
    collection.delete([f"p{gone}"])
    if step % 50 == 49:
        collection.rebuild()
    print(step, flush=True)
"""


def test_acknowledged_writes_survive_kill_9(tmp_path: Path) -> None:
    np.save(tmp_path / "vectors.npy", VECTORS)
    arguments = [sys.executable, "-c", WRITER, str(tmp_path / "items"), str(tmp_path / "vectors.npy")]
    for acknowledged in (1, 30, 48, 98):  # also while the structure is being saved
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            seen = -1
            while seen < acknowledged:
                line = writer.stdout.readline()
                assert line, "the writer ended by itself"
                seen = int(line)
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split()
        done = max([seen, *map(int, rest)])
        collection = Collection(tmp_path / "items", "model-a", DIMENSION)
        assert holds(collection, done) or holds(collection, done, upserted=1) or holds(collection, done + 1)
        for item_id, item in collection.get([f"p{i}" for i in range(len(VECTORS))]).items():
            [hits] = collection.search(item.vector[None], 1)
            assert hits[0].item_id == item_id
        collection.close()
        for file in [*tmp_path.glob("items/*"), *tmp_path.glob("items/ann/*")]:
            if file.is_file():
                file.unlink()


def holds(collection: Collection, done: int, upserted: int = 0) -> bool:
    """Whether the collection is that of `done` steps, and `upserted` more upserts: the one call under way."""
    kept: dict[str, int] = {}
    for step in range(done + 1 + upserted):
        kept |= {f"p{(step * 7 + i) % len(VECTORS)}": step for i in range(3)}
        if step <= done:
            kept.pop(f"p{(step * 5) % len(VECTORS)}", None)
    found = collection.get([f"p{i}" for i in range(len(VECTORS))])
    return {item_id: item.payload["step"] for item_id, item in found.items()} == kept


def test_growth_and_tombstones_bring_a_rebuild(tmp_path: Path) -> None:
    collection = opened(tmp_path, factory="IVF8,Flat")
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


def test_written_to_and_searched_at_once(tmp_path: Path) -> None:
    collection, vectors = opened(tmp_path), unit(200, seed=5)
    ids = [f"p{i}" for i in range(200)]
    collection.upsert(ids, [{"version": 0}] * 200, vectors)

    def write(version: int) -> None:
        collection.upsert(ids, [{"version": version}] * 200, vectors)

    def read(_: int) -> None:
        for row, hits in enumerate(collection.search(vectors, 1)):
            assert hits[0].item_id == ids[row]

    with ThreadPoolExecutor(6) as pool:
        work = [pool.submit(write, version) for version in range(1, 25)]
        work += [pool.submit(read, i) for i in range(60)] + [pool.submit(lambda _: collection.rebuild(), 0)]
        for one in work:
            one.result(60)
    assert len(collection) == 200
    collection.close()


@pytest.mark.parametrize("name", ["index.faiss", "rows.npy", "manifest.json"])
def test_a_damaged_structure_is_built_anew(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    collection = opened(tmp_path)
    collection.upsert(IDS, [{}] * 8, VECTORS[:8])
    collection.save()
    collection.close()
    file = tmp_path / "items/ann" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = opened(tmp_path)
    assert [hit.item_id for hit in again.search(VECTORS[:1], 1)[0]] == ["p0"]
    assert "is damaged" in caplog.text
    again.close()


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    collection.upsert(IDS, [{}] * 8, VECTORS[:8])
    collection.close()
    file = tmp_path / "items/items.sqlite"
    file.write_bytes(b"no database at all" * 300)
    with pytest.raises(StoreError, match="restore a snapshot"):
        opened(tmp_path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(StoreError, match="model model-a, not with model model-b"):
        Collection(tmp_path / "items", "model-b", DIMENSION)
    with pytest.raises(StoreError, match="dimension 16, not with dimension 8"):
        Collection(tmp_path / "items", "model-a", 8)
    with pytest.raises(StoreError, match="holds no collection"):
        Collection(tmp_path / "nothing")
    again = Collection(tmp_path / "items")
    assert (again.model, again.dimension, len(again), again.search(VECTORS[:2], 5)) == ("model-a", 16, 0, [[], []])
    again.close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    with pytest.raises(StoreError, match="is open already"):
        opened(tmp_path)
    collection.close()
    opened(tmp_path).close()


@pytest.mark.parametrize(
    ("ids", "payload", "scale", "said"),
    [
        ([""], {}, 1.0, "1 to 512 characters"),
        (["x" * 513], {}, 1.0, "1 to 512 characters"),
        ([7], {}, 1.0, "item_id 7"),
        (["\ud800"], {}, 1.0, "cannot be kept as JSON"),
        (["a"], {"price": float("nan")}, 1.0, "item 'a': its id or payload cannot be kept as JSON"),
        (["a"], {"when": {1, 2}}, 1.0, "cannot be kept as JSON"),
        (["a"], ["title"], 1.0, "not an object"),
        (["a"], {"uid": 2**53 + 1}, 1.0, "'uid' is a whole number beyond 2\\^53: send it as a string"),
        (["a"], {"uids": [1, 10**400]}, 1.0, "send it as a string"),
        (["a"], {}, 2.0, "item 'a': its vector has length 2.000, not 1"),
        (["a"], {}, float("nan"), "length nan"),
        (["a", "b"], {}, 1.0, "2 ids, 1 payloads and 1 vectors"),
    ],
)
def test_bad_items_are_refused_whole(tmp_path: Path, ids: list[Any], payload: Any, scale: float, said: str) -> None:
    collection = opened(tmp_path)
    with pytest.raises(ItemError, match=said):
        collection.upsert(ids, [payload], VECTORS[:1] * scale)
    with pytest.raises(ItemError, match="keeps 16 numbers"):
        collection.upsert(["a"], [{}], unit(1, 8))
    with pytest.raises(ValueError, match="vectors of 16 numbers"):
        collection.search(unit(1, 8), 3)
    assert len(collection) == 0
    collection.close()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """The disk refuses in the middle of a transaction: all of it is undone, the collection goes on."""
    collection = opened(tmp_path)
    collection.upsert(["a"], [{"v": 1}], VECTORS[:1])
    pages = collection.store._db.execute("PRAGMA page_count").fetchone()[0]
    collection.store._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    many = 5000
    with pytest.raises(sqlite3.OperationalError, match="full"):
        collection.upsert(["a", *(f"p{i}" for i in range(many))], [{"v": 2}] * (many + 1), unit(many + 1))
    assert collection.get(["a"])["a"].payload == {"v": 1}
    assert [hit.item_id for hit in collection.search(VECTORS[:1], 5)[0]] == ["a"]
    collection.store._db.execute("PRAGMA max_page_count = 1000000")
    assert collection.upsert(["b"], [{}], VECTORS[1:2]) == 1
    collection.close()


def test_rebuilt_while_items_go(tmp_path: Path) -> None:
    """A structure that is trained on items which are replaced and deleted meanwhile."""
    collection, vectors = opened(tmp_path, factory="IVF8,Flat"), unit(2000, seed=6)
    ids = [f"p{i}" for i in range(2000)]
    collection.upsert(ids, [{}] * 2000, vectors)

    def churn(part: int) -> None:
        for start in range(part, 1000, 40):
            collection.upsert(ids[start : start + 20], [{"again": True}] * 20, vectors[start : start + 20])
            collection.delete(ids[1000 + start : 1005 + start])

    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(churn, 0), pool.submit(churn, 20)]
        work += [pool.submit(collection.rebuild) for _ in range(4)]
        for one in work:
            one.result(120)
    collection.wait(60)
    left = [i for i in range(2000) if i < 1000 or i % 20 >= 5]
    assert len(collection) == len(left) == len(collection.get(ids))
    assert [hits[0].item_id for hits in collection.search(vectors[left], 1)] == [ids[i] for i in left]
    collection.close()


def test_closed_while_it_is_searched(tmp_path: Path) -> None:
    for _ in range(10):
        collection = opened(tmp_path)
        collection.upsert(IDS, [{}] * 8, VECTORS[:8])

        def ask(collection: Collection = collection) -> None:
            with pytest.raises(StoreError, match="is closed"):
                while True:
                    collection.search(VECTORS, 3)

        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(ask) for _ in range(3)]
            collection.close()
            for one in work:
                one.result(30)
        for call in (collection.rebuild, collection.count, collection.save):
            with pytest.raises(StoreError, match="is closed"):
                call()
        with pytest.raises(StoreError, match="is closed"):
            collection.upsert(IDS[:1], [{}], VECTORS[:1])


def test_bad_questions_are_refused(tmp_path: Path) -> None:
    collection = opened(tmp_path)
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


def test_filters_see_what_the_store_keeps(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    collection.upsert(["a"], [{7: "x", "price": True, "at": (1, 2)}], VECTORS[:1])
    assert collection.count({"7": "x"}) == collection.count({"at": 2}) == collection.count({"price": True}) == 1
    collection.close()


def test_leftovers_of_a_killed_process_go(tmp_path: Path) -> None:
    opened(tmp_path).close()
    for name in (".ann.12345678.tmp", ".snapshot-abc"):
        (tmp_path / "items" / name).mkdir()
    opened(tmp_path).close()
    assert sorted(file.name for file in (tmp_path / "items").iterdir()) == ["items.sqlite", "lock"]


def test_an_empty_file_is_no_collection(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "items/items.sqlite").touch()
    with pytest.raises(StoreError, match="is empty: build the collection"):
        Collection(tmp_path / "items")
    opened(tmp_path).close()  # the same folder can be built in
