"""A collection under faults: killed while it is written to, damaged, interrupted, closed while it is used."""

import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrem.errors import StoreError
from lrem.index.collection import Collection

DIMENSION = 16
IDS = [f"p{i}" for i in range(8)]


def unit(rows: int) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(rows, DIMENSION)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def open_collection(folder: Path) -> Collection:
    return Collection(folder / "items", "model-a", DIMENSION)


VECTORS = unit(40)


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
                assert line, "the writer has ended"
                seen = int(line)
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read().split()
        done = max([seen, *map(int, rest)])
        collection = Collection(tmp_path / "items", "model-a", DIMENSION)
        in_flight = (has_state_of(collection, done, upserted=1), has_state_of(collection, done + 1))
        assert has_state_of(collection, done) or any(in_flight)
        for item_id, item in collection.get([f"p{i}" for i in range(len(VECTORS))]).items():
            [hits] = collection.search(item.vector[None], 1)
            assert hits[0].item_id == item_id
        collection.close()
        for file in [*tmp_path.glob("items/*"), *tmp_path.glob("items/ann/*")]:
            if file.is_file():
                file.unlink()


def has_state_of(collection: Collection, done: int, upserted: int = 0) -> bool:
    """Return whether the collection has the state after `done` steps and `upserted` further upserts."""
    kept: dict[str, int] = {}
    for step in range(done + 1 + upserted):
        kept |= {f"p{(step * 7 + i) % len(VECTORS)}": step for i in range(3)}
        if step <= done:
            kept.pop(f"p{(step * 5) % len(VECTORS)}", None)
    items = collection.get([f"p{i}" for i in range(len(VECTORS))])
    return {item_id: item.payload["step"] for item_id, item in items.items()} == kept


@pytest.mark.parametrize("name", ["index.faiss", "rows.npy", "manifest.json"])
def test_a_damaged_checkpoint_is_built_again(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    collection = open_collection(tmp_path)
    collection.upsert(IDS, [{}] * 8, VECTORS[:8])
    collection.save()
    collection.close()
    file = tmp_path / "items/ann" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = open_collection(tmp_path)
    assert [hit.item_id for hit in again.search(VECTORS[:1], 1)[0]] == ["p0"]
    assert "is damaged" in caplog.text
    again.close()


def test_processes_write_and_search_one_folder(tmp_path: Path) -> None:
    """Two writing processes beside a reader; one is killed in the middle. Every reply that came back is there."""
    np.save(tmp_path / "vectors.npy", VECTORS)
    arguments = [sys.executable, "-c", SHARER, str(tmp_path / "items"), str(tmp_path / "vectors.npy")]
    reader = open_collection(tmp_path)
    with (
        subprocess.Popen([*arguments, "a", "200"], stdout=subprocess.PIPE, text=True) as lasting,
        subprocess.Popen([*arguments, "b", "100000"], stdout=subprocess.PIPE, text=True) as killed,
    ):
        assert killed.stdout is not None
        assert lasting.stdout is not None
        for _ in range(60):
            assert killed.stdout.readline()
            for hits, row in zip(reader.search(VECTORS[:4], 3), range(4), strict=True):
                assert all(hit.payload["row"] == row for hit in hits if hit.score > 0.999)
        killed.kill()
        said = {"a": len(lasting.stdout.read().split()), "b": 60 + len(killed.stdout.read().split())}
    assert lasting.returncode == 0
    assert said["a"] == 200
    assert reader.count({"by": "a"}) == 200
    assert reader.count({"by": "b"}) in (said["b"], said["b"] + 1)  # one may be written and not acknowledged
    assert reader.count() == len(reader.store)
    for name, count in said.items():
        assert len(reader.get([f"{name}{i}" for i in range(count)])) == count
    reader.close()


SHARER = """
import sys
from pathlib import Path
import numpy as np
from lrem.index.collection import Collection

vectors, name = np.load(sys.argv[2]), sys.argv[3]
collection = Collection(Path(sys.argv[1]), "model-a", vectors.shape[1])
for step in range(int(sys.argv[4])):
    row = step % len(vectors)
    collection.upsert([f"{name}{step}", "shared"], [{"row": row, "by": name}, {"row": row}], vectors[[row, row]])
    [hits] = collection.search(vectors[row][None], 3)
    assert hits[0].score > 0.999
    if step % 50 == 49:
        collection.rebuild()
    print(step, flush=True)
collection.close()
"""


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    collection = open_collection(tmp_path)
    collection.upsert(IDS, [{}] * 8, VECTORS[:8])
    collection.close()
    file = tmp_path / "items/items.sqlite"
    file.write_bytes(b"no database at all" * 300)
    with pytest.raises(StoreError, match="restore a snapshot"):
        open_collection(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """The disk refuses in the middle of a transaction: all of it is undone, the collection goes on."""
    collection = open_collection(tmp_path)
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


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, MemoryError])
def test_a_write_that_cannot_be_made_searchable_closes_the_collection(
    tmp_path: Path, interrupt: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = open_collection(tmp_path)
    collection.upsert(["a"], [{"v": 1}], VECTORS[:1])

    def stop(*_: Any) -> None:
        raise interrupt

    monkeypatch.setattr(collection.segment, "append", stop)
    with pytest.raises(interrupt):
        collection.upsert(["a"], [{"v": 2}], VECTORS[1:2])
    for call in (lambda: collection.search(VECTORS[:1], 1), lambda: collection.get(["a"]), collection.save):
        with pytest.raises(StoreError, match="is closed"):
            call()
    collection.close()
    again = open_collection(tmp_path)
    assert again.get(["a"])["a"].payload == {"v": 2}
    assert again.search(VECTORS[1:2], 1)[0][0].score == pytest.approx(1, abs=1e-5)
    again.close()


def test_closing_during_searches(tmp_path: Path) -> None:
    for _ in range(10):
        collection = open_collection(tmp_path)
        collection.upsert(IDS, [{}] * 8, VECTORS[:8])

        def ask(collection: Collection = collection) -> None:
            with pytest.raises(StoreError, match="is closed"):
                while True:
                    collection.search(VECTORS, 3)
                    collection.get(IDS)
                    collection.scroll(3)

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


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    open_collection(tmp_path).close()
    for name in (".ann.12345678.tmp", ".snapshot-abc"):
        (tmp_path / "items" / name).mkdir()
    open_collection(tmp_path).close()
    assert sorted(file.name for file in (tmp_path / "items").iterdir()) == ["items.sqlite", "lock"]


def test_an_empty_file_is_not_a_collection(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "items/items.sqlite").touch()
    with pytest.raises(StoreError, match="is empty: build the collection"):
        Collection(tmp_path / "items")
    open_collection(tmp_path).close()  # the same folder can be built in
