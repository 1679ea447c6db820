"""The writes that a collection received after it was restored from a snapshot, for carrying them to a newer index."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lrem.data.files import write_json
from lrem.errors import StoreError
from lrem.index.collection import FORMAT, ITEMS
from lrem.index.store import Store

START_FILE, CARRIED_FILE = "filled.json", "told.json"
T = TypeVar("T")


class Watermark(NamedTuple):
    """A point in a collection's history: its newest row, and the number of its newest deletion."""

    row: int
    drop: int


class Changes(NamedTuple):
    """The writes between two watermarks; `watermark` is the later one."""

    upserted: list[tuple[str, dict[str, Any]]]  # (item_id, payload)
    deleted: list[str]
    watermark: Watermark


def record_start(folder: Path) -> None:
    """Record the watermark of a collection that was just restored and that nobody has open."""
    watermark = _with_store(folder, lambda store: Watermark(store.last_row, store.last_drop))
    write_json(watermark._asdict(), folder / START_FILE)


def start_watermark(folder: Path) -> Watermark:
    """Return the watermark at which the collection was restored."""
    return Watermark(**json.loads((folder / START_FILE).read_text(encoding="utf-8")))


def record_carried(folder: Path, watermark: Watermark) -> None:
    """Record that another index has all writes up to `watermark`; carrying again still begins at the start."""
    write_json(watermark._asdict(), folder / CARRIED_FILE)


def count_pending(folder: Path) -> int:
    """Return the number of items and deletions that no other index has."""
    carried = folder / CARRIED_FILE
    watermark = (
        Watermark(**json.loads(carried.read_text(encoding="utf-8"))) if carried.exists() else start_watermark(folder)
    )

    def count(store: Store) -> int:
        return int((store.rows() > watermark.row).sum()) + store.last_drop - watermark.drop

    return _with_store(folder, count)


def _with_store(folder: Path, function: Callable[[Store], T]) -> T:
    store = Store(folder / ITEMS, {"format": FORMAT}, create=False)
    try:
        return function(store)
    finally:
        store.close()


def changes_since(store: Store, watermark: Watermark, limit: int) -> Changes:
    """Return up to `limit` items written after `watermark`, oldest first; the last part also has all deletions.

    Raises:
        StoreError: the store no longer remembers all deletions.
    """
    last_row, last_drop = store.last_row, store.last_drop  # read first: later writes belong to the next call
    items = next(store.items_after(watermark.row, limit), [])
    upserted = [(item.item_id, item.payload) for item in items]
    if len(items) == limit:
        return Changes(upserted, [], Watermark(items[-1].row, watermark.drop))
    deletions = store.deletions_after(watermark.drop)
    if deletions is None:
        raise StoreError(f"{store.file}: too many deletions since it was restored to carry them; save a snapshot")
    ids = list(dict.fromkeys(deletions.values()))
    present = store.rows_of(ids)
    reached = Watermark(max([last_row, *(item.row for item in items)]), last_drop)
    return Changes(upserted, [item_id for item_id in ids if item_id not in present], reached)
