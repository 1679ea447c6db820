"""A collection from many items at once: they are stored first, and the search structure is built once, behind them.

Knows stores, snapshots and which shard owns an item; does not know where shards run.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrem.data.files import atomic_folder, exclusive_lock
from lrem.index import changes
from lrem.index.ann import choose_factory
from lrem.index.collection import FORMAT, ITEMS, Collection
from lrem.index.payload import encode_items, last_positions
from lrem.index.shard import owner
from lrem.index.snapshot import read_manifest, restore, write_snapshot
from lrem.index.store import Store

FILL_TIMEOUT_S = 3600.0  # for another process that fills the same folder


class ItemBatch(NamedTuple):
    """Some items; vectors: [N, H] float32 of unit length."""

    ids: Sequence[str]
    payloads: Sequence[Mapping[str, Any]]
    vectors: np.ndarray


def build_collection(
    folder: Path, batches: Iterable[ItemBatch], model: str, dimension: int, factory: str | None = None
) -> None:
    """Make the collection `folder`; it is there whole or not at all. Arguments as `Collection`'s.

    Raises:
        ItemError: an id, payload or vector that cannot be kept.
        BuildError: Faiss does not take the factory.
    """
    choose_factory(0, dimension, factory)
    with atomic_folder(folder) as part:
        about: dict[str, str | int] = {"model": model, "dimension": dimension, "format": FORMAT}
        store = Store(part / ITEMS, about, create=True)
        try:
            for ids, payloads, vectors in batches:
                texts = encode_items(ids, payloads, vectors, dimension)
                kept = last_positions(ids)
                store.upsert([ids[i] for i in kept], [texts[i] for i in kept], vectors[kept])
        finally:
            store.close()
        collection = Collection(part, model, dimension, factory)
        try:
            collection.save()
        finally:
            collection.close()


def build_snapshot(
    out: str | Path,
    batches: Iterable[ItemBatch],
    model: str,
    dimension: int,
    factory: str | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Write a snapshot of many items; one that lies on a path replaces an older one whole. Returns its manifest.

    Args:
        source: kept in the manifest, so that who reads it knows what it was made of.

    Raises:
        ItemError, BuildError: as `fill`.
        SnapshotError: as `snapshot.snapshot`.
    """
    if "://" in str(out):
        with tempfile.TemporaryDirectory(prefix="lrem-index-") as made:
            build_collection(Path(made, "items"), batches, model, dimension, factory)
            return _snapshot(Path(made, "items"), out, factory, source)
    with atomic_folder(Path(out)) as part, tempfile.TemporaryDirectory(dir=part.parent, prefix=".lrem-index-") as made:
        build_collection(Path(made, "items"), batches, model, dimension, factory)
        return _snapshot(Path(made, "items"), part, factory, source)


def _snapshot(folder: Path, out: str | Path, factory: str | None, source: str | None) -> dict[str, Any]:
    collection = Collection(folder, factory=factory)
    try:
        return write_snapshot(collection, out, source)
    finally:
        collection.close()


def read_batches(folder: Path) -> Iterator[ItemBatch]:
    """Every item of a collection that nobody has open, or that is being served, some at a time."""
    store = Store(folder / ITEMS, {"format": FORMAT}, create=False)
    try:
        for part in store.since(0):
            yield ItemBatch([i.item_id for i in part], [i.payload for i in part], np.stack([i.vector for i in part]))
    finally:
        store.close()


def restore_shard(
    source: str | Path, folder: Path, model: str, shard: int, shards: int, factory: str | None = None
) -> None:
    """Make the collection `folder` of what `shard` of `shards` owns of a snapshot, unless it is there already.

    Raises:
        SnapshotError: as `snapshot.restore`.
        TimeoutError: another process has been filling the folder for an hour.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder.with_name(f"{folder.name}.lock"), FILL_TIMEOUT_S):
        if folder.exists():
            return
        dimension = read_manifest(source, model)["dimension"]
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".restored-") as made:
            whole, part = Path(made, "index"), Path(made, "part")
            restore(source, whole, model)
            if shards > 1:
                build_collection(part, _owned(read_batches(whole), shard, shards), model, dimension, factory)
            ready = part if shards > 1 else whole
            changes.record_start(ready)
            ready.rename(folder)


def _owned(batches: Iterable[ItemBatch], shard: int, shards: int) -> Iterator[ItemBatch]:
    for ids, payloads, vectors in batches:
        kept = [i for i, item_id in enumerate(ids) if owner(item_id, shards) == shard]
        yield ItemBatch([ids[i] for i in kept], [payloads[i] for i in kept], vectors[kept])
