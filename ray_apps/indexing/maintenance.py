"""`lrem index …`: snapshots built, looked at, measured, taken of what is served, and brought back. No Ray in here."""

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from lrem.config import Config
from lrem.data.files import atomic_folder
from lrem.data.schema import QUERIES, read_table
from lrem.errors import DataError, SnapshotError
from lrem.index import Collection
from lrem.index.bulk_load import build_snapshot, read_batches
from lrem.index.collection import FORMAT, ITEMS
from lrem.index.recall import measure_recall
from lrem.index.shard import generation_name
from lrem.index.snapshot import MANIFEST, open_snapshot, read_manifest, restore
from lrem.index.store import Store
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from ray_apps.cluster.progress import console

EFFORTS = (0.25, 0.5, 1.0, 2.0, 4.0)  # multiples of the usual one


def index_stats(source: str, factory: str | None) -> dict[str, Any]:
    """What a snapshot, a collection or a served folder of shards holds; a snapshot's checksums are compared.

    Raises:
        SnapshotError: there is none of them, or a snapshot is damaged.
    """
    if (shards := shard_folders(source)) is None:
        collection = open_snapshot(source)
        found = collection.stats() | {"created": read_manifest(source)["created"]}
        collection.close()
        return {name: value for name, value in found.items() if name != "bytes"}
    parts = []
    for folder in shards:
        collection = Collection(folder, factory=factory)
        parts.append(collection.stats())
        collection.close()
    total = {name: sum(part[name] for part in parts) for name in ("items", "tombstones", "bytes")}
    return parts[0] | total | {"shards": len(parts), "factory": ", ".join(sorted({part["factory"] for part in parts}))}


def recall_table(config: Config, source: str, k: int, count: int, where: dict[str, Any] | None) -> tuple[str, Table]:
    """Recall@k and latency of a snapshot at several efforts, beside exact search; and where the queries come from.

    Raises:
        SnapshotError: no snapshot there, or a damaged one.
        FilterError: the filter cannot be read.
    """
    collection = open_snapshot(source)
    queries, origin = _queries(config, collection, count)
    table = Table("effort", f"recall@{k}", "ms a query", "ms exact", title=str(collection.stats()["chosen"]))
    for effort in EFFORTS:
        found = measure_recall(collection, queries, k, where, effort)
        table.add_row(f"{effort:g}", f"{found.recall:.4f}", f"{found.ms:.2f}", f"{found.exact_ms:.2f}")
    collection.close()
    return origin, table


def _queries(config: Config, collection: Collection, count: int) -> tuple[np.ndarray, str]:
    """[Q, H] vectors to search with: the configured queries if the index's model is at hand, else items."""
    model, file = config.path("model"), config.path("queries")
    if file.exists() and model.exists() and fingerprint(model) == collection.model:
        texts = read_table(file, QUERIES)["query"].to_pylist()[:count]
        return ReasoningEmbedder.load(model).eval().encode_queries(texts, [""] * len(texts)), f"{len(texts)} of {file}"
    sample = collection.store.sample(count)
    if not len(sample):
        raise DataError("the index is empty: there is nothing to measure")
    return (
        sample,
        f"{len(sample)} of the index's own items, which are easier than queries (set paths.queries and model)",
    )


def served_folder(config: Config) -> Path:
    """Where the shards lie that are served from paths.index, on the machines that hold them."""
    return config.path("live") / generation_name(read_manifest(config.uri("index")), config.serve.shards)


def save_served_index(source: str, destination: str, factory: str | None) -> dict[str, Any]:
    """One snapshot of everything in a served folder of shards, or a collection, while it is served. Its manifest.

    Raises:
        SnapshotError: nothing is there, the destination holds a snapshot already, or cannot be written to.
    """
    shards = shard_folders(source)
    if shards is None:
        raise SnapshotError(f"{source} is a snapshot already: copy the folder, or restore it with `lrem index restore`")
    if "://" not in destination and Path(destination).exists():
        raise SnapshotError(f"{destination} exists already: choose another name, or delete it first")
    store = Store(shards[0] / ITEMS, {"format": FORMAT}, create=False)
    model, dimension = str(store.about["model"]), int(store.about["dimension"])
    store.close()
    return build_snapshot(destination, chain.from_iterable(map(read_batches, shards)), model, dimension, factory)


def restore_index(source: str, destination: str, model: str | None, replace: bool) -> dict[str, Any]:
    """Make the folder `destination` the snapshot `source`, each file compared with its checksum. Its manifest.

    Raises:
        SnapshotError: as `snapshot.restore`; or the destination is no folder, or there and not to be replaced.
    """
    if "://" in destination:
        raise SnapshotError(f"paths.index={destination} is an address: serve {source} itself, as paths.index={source}")
    out = Path(destination)
    if out.exists() and not replace:
        raise SnapshotError(f"{out} is there already: pass --replace, or another paths.index")
    with atomic_folder(out) as part:
        shutil.rmtree(part)
        manifest = restore(source, part, model)
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2))
    return manifest


def shard_folders(source: str) -> list[Path] | None:
    """The collections in a folder: itself, or those of a served index; None for a snapshot.

    Raises:
        SnapshotError: neither is there.
    """
    folder = Path(source)
    if "://" in source or (folder / MANIFEST).exists():
        return None
    if (folder / ITEMS).exists():
        return [folder]
    shards = sorted(file.parent for file in folder.glob(f"shard-*/{ITEMS}"))
    if shards and len(shards) < (count := int(shards[0].name.rpartition("-")[2])):
        raise SnapshotError(f"{source} has {len(shards)} of {count} shards: the others are on other machines")
    if not shards:
        raise SnapshotError(f"{source} holds no index: run `lrem index build`, or name a snapshot or a served folder")
    return shards


def print_stats(found: dict[str, Any]) -> None:
    """Print statistics, a line each."""
    for name, value in found.items():
        console.print(f"{name:>12}  {value}", markup=False, emoji=False, highlight=False)
