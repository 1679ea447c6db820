"""Items, their vectors and how they are found: a live collection, its snapshots, its shards."""

from lrem.index.ann import BuildError
from lrem.index.collection import Collection
from lrem.index.filters import FilterError
from lrem.index.payload import Hit, ItemError
from lrem.index.snapshot import SnapshotError
from lrem.index.store import StoreError

__all__ = ["BuildError", "Collection", "FilterError", "Hit", "ItemError", "SnapshotError", "StoreError"]
