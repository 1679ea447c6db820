"""The vector index: a live collection of items, its snapshots and its shards."""

from lrem.errors import BuildError, FilterError, ItemError, SnapshotError, StoreError
from lrem.index.collection import Collection
from lrem.index.payload import Hit

__all__ = ["BuildError", "Collection", "FilterError", "Hit", "ItemError", "SnapshotError", "StoreError"]
