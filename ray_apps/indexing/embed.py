"""Offline embedding of a catalogue: Ray Data with model actors. Writes vectors, then the index snapshot."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from lrem.config import Config
from lrem.data.files import atomic_folder, sha256
from lrem.data.schema import ITEMS, read_items, read_table
from lrem.errors import DataError, SnapshotError
from lrem.index.bulk_load import ItemBatch, build_snapshot
from lrem.index.payload import to_json
from lrem.index.snapshot import read_manifest
from lrem.retrieval.text_model import load_text_model, model_fingerprint
from ray_apps.cluster import metrics
from ray_apps.cluster.actor_pool import actor_pool
from ray_apps.cluster.progress import progress
from ray_apps.cluster.session import cluster

BATCH = 5000  # items turned into payloads at a time
VECTORS = pa.schema([("item_id", pa.string()), ("vector", pa.list_(pa.float32()))])


class ItemEncoder:
    """A model actor: a batch of titles in, their unit vectors out."""

    def __init__(self, folder: str) -> None:
        self.model = load_text_model(folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """item_id, title → item_id, vector [H]."""
        vectors = self.model.encode_items(batch["title"].to_pylist())
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return pa.table({"item_id": batch["item_id"], "vector": flat})


def embed(config: Config, model: Path, out: Path) -> dict[str, Any]:
    """Embed paths.items with the model folder `model` into the folder `out`, tied to its fingerprint.

    The folder may be ours or one of sentence-transformers.
    """
    items = read_items(config.path("items")).select(ITEMS.names)
    made_by = model_fingerprint(str(model))
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
        if model_fingerprint(str(model)) != made_by:
            raise DataError(f"{model} was replaced while it embedded the catalogue: run `lrem embed` again")
        (part / "manifest.json").write_text(json.dumps({"model": made_by, "count": done}) + "\n")
    return {"items": done}


def build_index(config: Config, vectors: Path, out: str | Path) -> dict[str, Any]:
    """Build the index snapshot `out` from the folder that `embed` wrote and paths.items.

    Raises:
        DataError: the vectors are not those of this catalogue.
    """
    items = read_items(config.path("items"))
    table = read_table(vectors / "vectors.parquet", VECTORS)
    manifest = json.loads((vectors / "manifest.json").read_text())
    position = {item_id: i for i, item_id in enumerate(table["item_id"].to_pylist())}
    missing = [item_id for item_id in items["item_id"].to_pylist() if item_id not in position]
    if missing or len(position) != items.num_rows:
        raise DataError(
            f"{vectors} holds {len(position)} vectors, {config.path('items')} {items.num_rows} items "
            f"({len(missing)} without a vector): run `lrem embed` again"
        )
    matrix = np.stack(table["vector"].to_numpy())[[position[i] for i in items["item_id"].to_pylist()]]
    batches, source = _batches(items, matrix), sha256(config.path("items"))
    return build_snapshot(out, batches, manifest["model"], matrix.shape[1], config.index.factory, source)


def is_index_current(config: Config) -> bool:
    """Whether paths.index was made of paths.items with the model of paths.model.

    Raises:
        SnapshotError: it was made of no catalogue, but saved from a served index: it may hold what no catalogue does.
    """
    try:
        manifest = read_manifest(config.uri("index"))
    except SnapshotError:
        return False
    if manifest.get("source") is None:
        raise SnapshotError(
            f"{config.uri('index')} was saved from a served index and may hold more than {config.path('items')}: leave "
            "--catalogue out to serve it, name another paths.index, or delete the folder to build it anew"
        )
    from lrem.modeling.model import fingerprint  # here: it brings torch, which curation by words does not need

    made_of = (manifest["model"], manifest["source"])
    return made_of == (fingerprint(config.path("model")), sha256(config.path("items")))


def _batches(items: pa.Table, vectors: np.ndarray) -> Iterator[ItemBatch]:
    for start in range(0, items.num_rows, BATCH):
        rows = to_json(items.slice(start, BATCH).to_pylist())
        ids = [row.pop("item_id") for row in rows]
        yield ItemBatch(ids, rows, np.ascontiguousarray(vectors[start : start + BATCH]))
