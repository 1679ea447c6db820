"""A retriever setting is resolved once: its kind, model, index and fingerprint."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lrem.data.files import sha256, write_parquet
from lrem.errors import DataError, SnapshotError
from lrem.index import bulk_load
from lrem.index.snapshot import read_manifest
from lrem.retrieval.resolved_retriever import ResolvedRetriever, resolve_retriever
from lrem.retrieval.text_model import model_fingerprint


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return write_parquet(pa.table({"item_id": ["i1"], "title": ["red coat"]}), tmp_path / "items.parquet")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of sentence-transformers, as far as its kind and its fingerprint go."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def snapshot(tmp_path: Path, items: Path, model: Path) -> Path:
    batch = bulk_load.ItemBatch(["i1"], [{"title": "red coat"}], np.array([[1, 0]], np.float32))
    bulk_load.build_snapshot(tmp_path / "index", [batch], model_fingerprint(str(model)), 2, None, sha256(items))
    return tmp_path / "index"


def test_bm25_needs_neither_model_nor_index(tmp_path: Path, items: Path) -> None:
    retriever = resolve_retriever("bm25", tmp_path / "unused", items)
    assert retriever == ResolvedRetriever("bm25", None, None, "bm25")
    assert [item for item, _ in retriever.open(items).search(["coat"], 3)[0]] == ["i1"]


def test_a_model_folder_has_no_index_yet(items: Path, model: Path) -> None:
    retriever = resolve_retriever(str(model), model, items)
    fingerprint = model_fingerprint(str(model))
    assert retriever == ResolvedRetriever("sentence-transformers", str(model), None, fingerprint)
    (model / "model.safetensors").write_bytes(b"trained further")
    assert resolve_retriever(str(model), model, items).fingerprint != fingerprint


def test_the_fingerprint_of_a_snapshot_is_its_manifest(items: Path, model: Path, snapshot: Path) -> None:
    retriever = resolve_retriever(str(snapshot), model, items)
    assert (retriever.kind, retriever.model, retriever.index) == ("snapshot", str(model), str(snapshot))
    assert json.loads(retriever.fingerprint) == read_manifest(snapshot)


def test_a_snapshot_of_another_catalogue_or_model_is_refused(items: Path, model: Path, snapshot: Path) -> None:
    write_parquet(pa.table({"item_id": ["i1"], "title": ["blue coat"]}), items)
    with pytest.raises(DataError, match=r"index .*items\.parquet"):
        resolve_retriever(str(snapshot), model, items)
    (model / "model.safetensors").write_bytes(b"trained further")
    with pytest.raises(SnapshotError, match="model"):
        resolve_retriever(str(snapshot), model, items)


def test_a_retriever_that_does_not_exist_is_refused(tmp_path: Path, items: Path) -> None:
    with pytest.raises(DataError, match="bm-25"):
        resolve_retriever("bm-25", tmp_path, items)
