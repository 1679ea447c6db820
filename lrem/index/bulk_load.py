"""Bulk loading: collections and snapshots from many items, stored first and then indexed once."""

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
from lrem.index.snapshot import SnapshotManifest, read_manifest, restore, write_snapshot
from lrem.index.store import Store

RESTORE_TIMEOUT_S = 3600.0  # waiting for another process that restores the same folder


class ItemBatch(NamedTuple):
    """Items to load; vectors: [N, H] float32 of unit length."""

    ids: Sequence[str]
    payloads: Sequence[Mapping[str, Any]]
    vectors: np.ndarray


def build_collection(
    folder: Path, batches: Iterable[ItemBatch], model: str, dimension: int, factory: str | None = None
) -> None:
    """Create the collection `folder`, completely or not at all. An item that is repeated counts as it came last.

    Args:
        model, dimension, factory: as of `Collection`.

    Raises:
        ItemError: an id, payload or vector is invalid.
        BuildError: Faiss refuses the factory.
    """
    choose_factory(0, dimension, factory)
    with atomic_folder(folder) as part:
        about: dict[str, str | int] = {"model": model, "dimension": dimension, "format": FORMAT}
        store = Store(part / ITEMS, about, create=True)
        try:
            for ids, payloads, vectors in batches:
                texts = encode_items(ids, payloads, vectors, dimension)
                last = last_positions(ids)
                store.upsert([ids[i] for i in last], [texts[i] for i in last], vectors[last])
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
    catalogue_sha256: str | None = None,
) -> SnapshotManifest:
    """Build a snapshot from items and return its manifest. On a path it replaces an older snapshot as a whole.

    Args:
        catalogue_sha256: sha256 of the catalogue that the items come from, for the manifest.

    Raises:
        ItemError, BuildError: as `build_collection`.
        SnapshotError: as `write_snapshot`.
    """
    if "://" in str(out):
        with tempfile.TemporaryDirectory(prefix="lrem-index-") as temporary:
            build_collection(Path(temporary, "items"), batches, model, dimension, factory)
            return _snapshot(Path(temporary, "items"), out, factory, catalogue_sha256)
    with (
        atomic_folder(Path(out)) as part,
        tempfile.TemporaryDirectory(dir=part.parent, prefix=".lrem-index-") as temporary,
    ):
        build_collection(Path(temporary, "items"), batches, model, dimension, factory)
        return _snapshot(Path(temporary, "items"), part, factory, catalogue_sha256)


def _snapshot(folder: Path, out: str | Path, factory: str | None, catalogue_sha256: str | None) -> SnapshotManifest:
    collection = Collection(folder, factory=factory)
    try:
        return write_snapshot(collection, out, catalogue_sha256)
    finally:
        collection.close()


def read_batches(folder: Path) -> Iterator[ItemBatch]:
    """Yield all items of a collection, which may be open in other processes."""
    store = Store(folder / ITEMS, {"format": FORMAT}, create=False)
    try:
        for items in store.items_after(0):
            vectors = np.stack([item.vector for item in items])
            yield ItemBatch([item.item_id for item in items], [item.payload for item in items], vectors)
    finally:
        store.close()


def restore_shard(
    source: str | Path, folder: Path, model: str, shard: int, shards: int, factory: str | None = None
) -> None:
    """Restore the items of a snapshot that `shard` owns as the collection `folder`, unless it exists.

    Raises:
        SnapshotError: as `restore`.
        TimeoutError: another process has been restoring the folder for an hour.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder.with_name(f"{folder.name}.lock"), RESTORE_TIMEOUT_S):
        if folder.exists():
            return
        dimension = read_manifest(source, model)["dimension"]
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".restored-") as temporary:
            collection = Path(temporary, "index")
            restore(source, collection, model)
            if shards > 1:
                owned, collection = _owned(read_batches(collection), shard, shards), Path(temporary, "part")
                build_collection(collection, owned, model, dimension, factory)
            changes.record_start(collection)
            collection.rename(folder)


def _owned(batches: Iterable[ItemBatch], shard: int, shards: int) -> Iterator[ItemBatch]:
    for ids, payloads, vectors in batches:
        owned = [i for i, item_id in enumerate(ids) if owner(item_id, shards) == shard]
        yield ItemBatch([ids[i] for i in owned], [payloads[i] for i in owned], vectors[owned])
