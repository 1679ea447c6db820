"""An index on disk: one folder, written atomically, checksummed, refused under another model.

items.parquet   the catalogue rows, in vector order
index.faiss     the vectors
manifest.json   model fingerprint, dimension, count, sha256 of the two files
"""

import json
from pathlib import Path
from typing import Any

import faiss
import pyarrow.parquet as pq

from lrem.files import atomic_folder, sha256
from lrem.index.vector_index import VectorIndex

ITEMS, VECTORS, MANIFEST = "items.parquet", "index.faiss", "manifest.json"


class SnapshotError(ValueError):
    """A snapshot that must not be served; the message says why and what to do."""


def save(index: VectorIndex, folder: Path) -> dict[str, Any]:
    """Write a snapshot, replacing an older one whole. Returns its manifest."""
    with atomic_folder(folder) as part:
        pq.write_table(index.items, part / ITEMS)
        faiss.write_index(index.index, str(part / VECTORS))
        manifest = {
            "model": index.model,
            "factory": index.factory,
            "dimension": index.dimension,
            "count": len(index),
            "sha256": {name: sha256(part / name) for name in (ITEMS, VECTORS)},
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def read_manifest(folder: Path, model: str | None = None) -> dict[str, Any]:
    """The manifest alone, without reading vectors: `model`, `dimension`, `count`, `sha256`.

    Raises:
        SnapshotError: no snapshot there, or it belongs to another model than `model`.
    """
    if not (folder / MANIFEST).exists():
        raise SnapshotError(f"{folder} holds no index snapshot: run `lrem index` first")
    manifest = json.loads((folder / MANIFEST).read_text())
    if model is not None and manifest["model"] != model:
        raise SnapshotError(
            f"{folder} was built with model {manifest['model']}, queries use model {model}: "
            "run `lrem embed` and `lrem index` with this model"
        )
    return dict(manifest)


def load(folder: Path, model: str | None = None) -> VectorIndex:
    """Read a snapshot back.

    Args:
        folder: what `save` wrote.
        model: the fingerprint that queries will be embedded with; None takes any.

    Raises:
        SnapshotError: no snapshot there, a file was altered or cut, or it belongs to another model.
    """
    manifest = read_manifest(folder, model)
    for name, digest in manifest["sha256"].items():
        if not (folder / name).exists() or sha256(folder / name) != digest:
            raise SnapshotError(f"{folder / name} is damaged (sha256 differs): run `lrem index` again")
    vectors = faiss.read_index(str(folder / VECTORS))
    return VectorIndex(pq.read_table(folder / ITEMS), vectors, manifest["model"], manifest["factory"])
