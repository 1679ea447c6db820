"""What was written to a collection since it was filled from a snapshot: what a newer index has to be told.

Knows stores; does not know who asks, nor what becomes of the changes.
"""

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
    """How far a collection has come: its newest row, and the number of its newest deletion."""

    row: int
    drop: int


class Changes(NamedTuple):
    """What came since some state, with its payload, the ids of what went, and the state that this leads to."""

    upserted: list[tuple[str, dict[str, Any]]]
    deleted: list[str]
    state: Watermark


def record_start(folder: Path) -> None:
    """Keep the state of a collection that was just filled, which nobody has open."""
    state = _opened(folder, lambda store: Watermark(store.last_row, store.last_drop))
    write_json(state._asdict(), folder / START_FILE)


def record_carried(folder: Path, state: Watermark) -> None:
    """Keep the state up to which another index knows everything; what is carried still starts at the filling."""
    write_json(state._asdict(), folder / CARRIED_FILE)


def start_watermark(folder: Path) -> Watermark:
    """The state when it was filled."""
    return Watermark(**json.loads((folder / START_FILE).read_text()))


def count_pending(folder: Path) -> int:
    """How many items and deletions of a collection no other index was told of."""
    told = folder / CARRIED_FILE
    state = Watermark(**json.loads(told.read_text())) if told.exists() else start_watermark(folder)

    def count(store: Store) -> int:
        rows = store.rows()
        return int((rows > state.row).sum()) + store.last_drop - state.drop

    return _opened(folder, count)


def _opened(folder: Path, work: Callable[[Store], T]) -> T:
    store = Store(folder / ITEMS, {"format": FORMAT}, create=False)
    try:
        return work(store)
    finally:
        store.close()


def changes_since(store: Store, state: Watermark, limit: int) -> Changes:
    """Up to `limit` items that came since a state, the oldest first; with the last of them, everything that went.

    Raises:
        StoreError: more was deleted than is remembered.
    """
    last_row, last_drop = store.last_row, store.last_drop  # before the rest: what comes meanwhile is told the next time
    items = next(store.since(state.row, limit), [])
    upserted = [(item.item_id, item.payload) for item in items]
    if len(items) == limit:
        return Changes(upserted, [], Watermark(items[-1].row, state.drop))
    gone = store.dropped(state.drop)
    if gone is None:
        raise StoreError(f"{store.file}: more was deleted since it was filled than is remembered: take a snapshot")
    ids = list(dict.fromkeys(gone.values()))
    there = store.rows_of(ids)
    reached = Watermark(max([last_row, *(item.row for item in items)]), last_drop)
    return Changes(upserted, [item_id for item_id in ids if item_id not in there], reached)
