"""`lrem index stats | recall | snapshot | restore` of a snapshot and of a served folder of shards."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lrem.config import load_config
from lrem.data.files import write_parquet
from lrem.index import Collection
from lrem.index.bulk_load import ItemBatch, build_snapshot, restore_shard
from lrem.index.snapshot import open_snapshot, read_manifest
from ray_apps.indexing.maintenance import served_folder
from tests.conftest import CommandResult

DIMENSION, COUNT = 16, 400
IDS = [f"p{i}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a snapshot, and two shards of it as they are served."""
    folder = tmp_path_factory.mktemp("shop")
    vectors = np.random.default_rng(0).normal(size=(COUNT, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    payloads = [{"title": f"title {i}", "price": i} for i in range(COUNT)]
    build_snapshot(folder / "index", [ItemBatch(IDS, payloads, vectors)], "model-a", DIMENSION)
    live = served_folder(load_config(None, [f"run_dir={folder}", "serve.shards=2"]))
    for shard in range(2):
        restore_shard(folder / "index", live / f"shard-{shard}-of-2", "model-a", shard, 2)
    return folder


@pytest.fixture
def index(lrem: Callable[..., CommandResult]) -> Callable[..., CommandResult]:
    """An `lrem index` command on a run folder with two shards."""
    return lambda run, *words: lrem("index", *words, f"run_dir={run}", "serve.shards=2")


def test_stats_and_recall(index: Callable[..., CommandResult], run: Path) -> None:
    done = index(run, "stats")
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert (lines["items"], lines["model"], lines["factory"]) == ("400", "model-a", "Flat")
    done = index(run, "recall", "-k", "5", "--queries", "20", "--filter", '{"price": {"$lt": 300}}')
    assert done.returncode == 0, done.stderr
    assert "recall@5" in done.stdout
    assert done.stdout.count("1.0000") == 5  # exact at every effort
    assert "20 of the index's own items" in done.stdout


@pytest.mark.slow
def test_a_served_index_is_saved_and_restored(index: Callable[..., CommandResult], run: Path, tmp_path: Path) -> None:
    """While a shard is open elsewhere and written to; a restored snapshot can be opened repeatedly."""
    live = served_folder(load_config(None, [f"run_dir={run}", "serve.shards=2"]))
    shard = Collection(live / "shard-0-of-2")
    deleted = [item_id for item_id, _ in shard.scroll(10).items]
    shard.delete(deleted)
    done = index(run, "stats", "--from", str(live))
    assert f"items  {COUNT - 10}\n" in done.stdout, done.stdout + done.stderr
    done = index(run, "snapshot", str(tmp_path / "saved"))
    shard.close()
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "saved")["count"] == COUNT - 10
    assert "saved" in index(run, "snapshot", str(tmp_path / "saved")).stderr
    refused = index(run, "restore", str(tmp_path / "saved"))
    assert refused.returncode == 1
    assert "--replace" in refused.stderr
    done = index(run, "restore", str(tmp_path / "saved"), "--replace")
    assert done.returncode == 0, done.stderr
    for _ in range(2):
        again = open_snapshot(run / "index", "model-a")
        assert len(again) == COUNT - 10
        assert again.get(deleted) == {}
        again.close()
    assert index(run, "stats").returncode == 0


def test_a_build_reports_its_structure_and_why(index: Callable[..., CommandResult], run: Path, tmp_path: Path) -> None:
    vectors = np.eye(DIMENSION, dtype=np.float32)
    ids = IDS[:DIMENSION]
    write_parquet(pa.table({"item_id": ids, "title": ids}), tmp_path / "world" / "items.parquet")
    rows = pa.table({"item_id": ids, "vector": pa.array(list(vectors), pa.list_(pa.float32()))})
    write_parquet(rows, tmp_path / "vectors" / "vectors.parquet")
    (tmp_path / "vectors" / "manifest.json").write_text('{"model": "model-a", "count": 16}')
    done = index(tmp_path, "build")
    assert done.returncode == 0, done.stderr
    assert "structure Flat (16 vectors: exact search is fast up to 50000)" in done.stdout


def test_a_catalogue_does_not_replace_a_saved_served_index(
    lrem: Callable[..., CommandResult], run: Path, tmp_path: Path
) -> None:
    catalogue = write_parquet(pa.table({"item_id": IDS[:3], "title": IDS[:3]}), tmp_path / "items.parquet")
    done = lrem("serve", "--catalogue", str(catalogue), f"run_dir={run}")
    assert done.returncode == 1
    assert "was saved from a live index" in done.stderr
    assert "Traceback" not in done.stderr
    assert read_manifest(run / "index")["count"] >= COUNT - 10


def test_a_folder_without_an_index_is_refused(index: Callable[..., CommandResult], run: Path, tmp_path: Path) -> None:
    for words in (["stats", "--from", str(tmp_path)], ["recall", "--from", str(tmp_path / "none")]):
        done = index(run, *words)
        assert done.returncode == 1
        assert "lrem index build" in done.stderr
        assert "Traceback" not in done.stderr
