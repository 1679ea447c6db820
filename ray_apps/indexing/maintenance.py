"""The work of `lrem index`: statistics, recall, saving a live index, restoring a snapshot. Does not start Ray."""

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
from lrem.index.snapshot import MANIFEST, SnapshotManifest, open_snapshot, read_manifest, restore
from lrem.index.store import Store
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from ray_apps.cluster.progress import console

EFFORTS = (0.25, 0.5, 1.0, 2.0, 4.0)  # multiples of the default


def index_stats(source: str, factory: str | None) -> dict[str, Any]:
    """Return the statistics of a snapshot, whose checksums are verified, a collection, or a served folder of shards.

    Raises:
        SnapshotError: `source` is not one of these, or a damaged snapshot.
    """
    if (shards := shard_folders(source)) is None:
        collection = open_snapshot(source)
        stats = collection.stats() | {"created": read_manifest(source)["created"]}
        collection.close()
        return {name: value for name, value in stats.items() if name != "bytes"}
    parts = []
    for folder in shards:
        collection = Collection(folder, factory=factory)
        parts.append(collection.stats())
        collection.close()
    total = {name: sum(part[name] for part in parts) for name in ("items", "tombstones", "bytes")}
    return parts[0] | total | {"shards": len(parts), "factory": ", ".join(sorted({part["factory"] for part in parts}))}


def recall_table(config: Config, source: str, k: int, count: int, where: dict[str, Any] | None) -> tuple[str, Table]:
    """Return where the queries come from, and a table of recall@k and latency at several efforts and of exact search.

    Raises:
        SnapshotError: there is no snapshot, or it is damaged.
        FilterError: the filter is invalid.
    """
    collection = open_snapshot(source)
    queries, origin = _queries(config, collection, count)
    table = Table("effort", f"recall@{k}", "ms per query", "ms exact", title=str(collection.stats()["chosen"]))
    for effort in EFFORTS:
        result = measure_recall(collection, queries, k, where, effort)
        table.add_row(f"{effort:g}", f"{result.recall:.4f}", f"{result.ms:.2f}", f"{result.exact_ms:.2f}")
    collection.close()
    return origin, table


def _queries(config: Config, collection: Collection, count: int) -> tuple[np.ndarray, str]:
    """Return query vectors [Q, H] and their origin: paths.queries if paths.model is the index's, else its own items."""
    model, file = config.path("model"), config.path("queries")
    if file.exists() and model.exists() and fingerprint(model) == collection.model:
        texts = read_table(file, QUERIES)["query"].to_pylist()[:count]
        return ReasoningEmbedder.load(model).eval().encode_queries(texts, [""] * len(texts)), f"{len(texts)} of {file}"
    sample = collection.store.sample(count)
    if not len(sample):
        raise DataError("recall cannot be measured: the index is empty")
    return (
        sample,
        f"{len(sample)} of the index's own items, which are easier than queries (set paths.queries and model)",
    )


def served_folder(config: Config) -> Path:
    """Return the folder of the shards that serve paths.index, on the machines that hold them."""
    return config.path("live") / generation_name(read_manifest(config.uri("index")), config.serve.shards)


def save_served_index(source: str, destination: str, factory: str | None) -> SnapshotManifest:
    """Save a served folder of shards, or a collection, as one snapshot, while it is served, and return the manifest.

    Raises:
        SnapshotError: `source` is neither, or the destination exists or cannot be written.
    """
    shards = shard_folders(source)
    if shards is None:
        raise SnapshotError(f"{source} is already a snapshot: copy the folder, or restore it with `lrem index restore`")
    if "://" not in destination and Path(destination).exists():
        raise SnapshotError(f"{destination} already exists: choose another name, or delete it first")
    store = Store(shards[0] / ITEMS, {"format": FORMAT}, create=False)
    model, dimension = str(store.about["model"]), int(store.about["dimension"])
    store.close()
    return build_snapshot(destination, chain.from_iterable(map(read_batches, shards)), model, dimension, factory)


def restore_index(source: str, destination: str, model: str | None, replace: bool) -> SnapshotManifest:
    """Copy the snapshot `source` to the folder `destination`, verify its checksums, and return its manifest.

    Args:
        replace: replace an existing folder.

    Raises:
        SnapshotError: as `restore`; or the destination is not a folder, or exists and `replace` is False.
    """
    if "://" in destination:
        raise SnapshotError(
            f"paths.index={destination} is not a folder: serve the snapshot directly with paths.index={source}"
        )
    out = Path(destination)
    if out.exists() and not replace:
        raise SnapshotError(f"{out} already exists: pass --replace, or set another paths.index")
    with atomic_folder(out) as part:
        shutil.rmtree(part)
        manifest = restore(source, part, model)
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2))
    return manifest


def shard_folders(source: str) -> list[Path] | None:
    """Return the collections in a folder: the folder itself, or a live index's shards; None for a snapshot.

    Raises:
        SnapshotError: `source` is not one of these, or lacks shards.
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


def print_stats(stats: dict[str, Any]) -> None:
    """Print one statistic per line."""
    for name, value in stats.items():
        console.print(f"{name:>12}  {value}", markup=False, emoji=False, highlight=False)
