"""Offline embedding of a catalogue with model actors on Ray Data, and the index snapshot of its vectors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from lrem.config import Config
from lrem.data.files import atomic_folder, checksum
from lrem.data.payloads import large_integers_as_text, to_payloads
from lrem.data.schema import ITEMS, read_items, read_table
from lrem.errors import DataError, SnapshotError
from lrem.index.bulk_load import ItemBatch, build_snapshot
from lrem.index.snapshot import SnapshotManifest, read_manifest
from lrem.retrieval.text_model import load_text_model, model_fingerprint
from ray_apps.cluster import metrics
from ray_apps.cluster.actor_pool import actor_pool
from ray_apps.cluster.progress import progress
from ray_apps.cluster.session import cluster

BATCH = 5000  # items converted to payloads at a time
VECTORS = pa.schema([("item_id", pa.string()), ("vector", pa.list_(pa.float32()))])


class ItemEncoder:
    """A model actor that embeds batches of titles."""

    def __init__(self, folder: str) -> None:
        self.model = load_text_model(folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """item_id, title → item_id, vector [H]."""
        vectors = self.model.encode_items(batch["title"].to_pylist())
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return pa.table({"item_id": batch["item_id"], "vector": flat})


def embed(config: Config, model: Path, out: Path) -> dict[str, Any]:
    """Embed paths.items with the model folder `model`, and write vectors and the model's fingerprint to `out`.

    Args:
        model: a folder that this project or sentence-transformers wrote.

    Raises:
        DataError: the model was replaced in the meantime.
    """
    items = read_items(config.path("items")).select(ITEMS.names)
    embedder = model_fingerprint(str(model))
    with cluster(config), progress("embed", config.run_dir.name) as board, atomic_folder(out) as part:
        rows = ray.data.from_arrow(items).repartition(-(-items.num_rows // config.embed.batch_size))
        pool = actor_pool(config, "embed", config.embed.actors)
        vectors = pool.map(rows, ItemEncoder, (str(model),), config.embed.batch_size, "pyarrow")
        done = 0
        with pa.parquet.ParquetWriter(part / "vectors.parquet", VECTORS) as writer:
            for table in vectors.iter_batches(batch_size=None, batch_format="pyarrow"):
                writer.write_table(table.cast(VECTORS))
                done += table.num_rows
                metrics.count("items_embedded", table.num_rows, run=config.run_dir.name)
                board.update.remote(done, items.num_rows)
        if model_fingerprint(str(model)) != embedder:
            raise DataError(f"{model} was replaced while it embedded the catalogue: run `lrem embed` again")
        (part / "manifest.json").write_text(json.dumps({"model": embedder, "count": done}) + "\n")
    return {"items": done}


def build_index(config: Config, vectors: Path, out: str | Path) -> SnapshotManifest:
    """Build the index snapshot `out` from paths.items and the folder that `embed` wrote, and return its manifest.

    Raises:
        DataError: the vectors do not belong to this catalogue.
    """
    items = read_items(config.path("items"))
    table = read_table(vectors / "vectors.parquet", VECTORS)
    manifest = json.loads((vectors / "manifest.json").read_text(encoding="utf-8"))
    position = {item_id: i for i, item_id in enumerate(table["item_id"].to_pylist())}
    missing = [item_id for item_id in items["item_id"].to_pylist() if item_id not in position]
    if missing or len(position) != items.num_rows:
        raise DataError(
            f"{vectors} has {len(position)} vectors, but {config.path('items')} has {items.num_rows} items "
            f"({len(missing)} without a vector): run `lrem embed` again"
        )
    matrix = np.stack(table["vector"].to_numpy())[[position[i] for i in items["item_id"].to_pylist()]]
    batches, catalogue_sha256 = _batches(items, matrix), checksum(config.path("items"))
    return build_snapshot(out, batches, manifest["model"], matrix.shape[1], config.index.factory, catalogue_sha256)


def is_index_current(config: Config) -> bool:
    """Return whether paths.index was built from paths.items with the model of paths.model.

    Raises:
        SnapshotError: it was saved from a live index, so it may have items that are in no catalogue.
    """
    try:
        manifest = read_manifest(config.uri("index"))
    except SnapshotError:
        return False
    if manifest.get("source") is None:
        raise SnapshotError(
            f"{config.uri('index')} was saved from a live index and may hold more than {config.path('items')}: omit "
            "--catalogue to serve it, set another paths.index, or delete the folder to build it again"
        )
    from lrem.modeling.model import fingerprint  # here: it imports torch, which lexical curation does not need

    inputs = (manifest["model"], manifest["source"])
    return inputs == (fingerprint(config.path("model")), checksum(config.path("items")))


def _batches(items: pa.Table, vectors: np.ndarray) -> Iterator[ItemBatch]:
    items = large_integers_as_text(items)
    for start in range(0, items.num_rows, BATCH):
        rows = to_payloads(items.slice(start, BATCH))
        ids = [row.pop("item_id") for row in rows]
        yield ItemBatch(ids, rows, np.ascontiguousarray(vectors[start : start + BATCH]))
