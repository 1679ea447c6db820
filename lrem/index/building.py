"""How a segment is created from the store: built, loaded from a checkpoint, or brought up to date."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrem.errors import BuildError
from lrem.index import checkpoint
from lrem.index.ann import Ann, choose_factory
from lrem.index.segment import Segment
from lrem.index.store import Store

BATCH = 5000  # items read from the store at a time
TOMBSTONE_SHARE = 0.2  # tombstones ÷ live items above which a rebuild is due,
MIN_TOMBSTONES = 1000  # if they are more than this; a failed rebuild is tried again after as many writes

log = logging.getLogger(__name__)


def build_segment(store: Store, factory: str | None) -> Segment:
    """Return a segment of all items in the store, except those written in the meantime.

    Args:
        factory: Faiss factory string; None chooses by size.

    Raises:
        BuildError: Faiss refuses the factory.
    """
    count, dimension = len(store), int(store.about["dimension"])
    chosen, reason = choose_factory(count, dimension, factory)
    log.info("%s: %s, %s", store.file, chosen, reason)
    segment, started = Segment(Ann.build(dimension, chosen, store.sample), count), time.monotonic()
    for rows, payloads, vectors in _batches(store, 0, store.last_row):
        segment.append(rows, payloads, vectors)
    log.info("%s: %d items in %.1f s", store.file, len(segment), time.monotonic() - started)
    return segment


def is_rebuild_due(segment: Segment, dimension: int, factory: str | None) -> bool:
    """Return whether tombstones, growth or another factory make a rebuild worthwhile."""
    chosen, _ = choose_factory(segment.live, dimension, factory)
    changed = chosen != segment.ann.factory and (chosen == factory or segment.live > segment.built_for)
    return changed or segment.tombstones > max(MIN_TOMBSTONES, TOMBSTONE_SHARE * segment.live)


def open_segment(store: Store, folder: Path, factory: str | None) -> tuple[Segment, int]:
    """Return the segment of the checkpoint in `folder`, or a new one, with all items of the store.

    Returns:
        The segment, and the row from which to try `factory` again: 0, or a later one if it failed and search is exact.
    """
    segment, retry_from = _load_segment(store, folder), 0
    try:
        segment = build_segment(store, factory) if segment is None else segment
    except BuildError:
        log.exception("%s: search is exact for now", store.file.parent)
        retry_from = store.last_row + MIN_TOMBSTONES
        segment = build_segment(store, "Flat")
    catch_up(segment, store)
    return segment, retry_from


def _load_segment(store: Store, folder: Path) -> Segment | None:
    """Return the segment of the checkpoint in `folder`, or None, with a warning, if it does not fit the store."""
    segment = checkpoint.read(folder, int(store.about["dimension"]))
    if segment is None:
        return None
    try:
        if segment.last_row > store.last_row:
            raise KeyError("it is newer than the items")
        for rows, payloads, _ in _batches(store, 0, segment.last_row):
            segment.attach_payloads(rows, payloads)
    except KeyError as error:
        log.warning("%s does not fit its items (%s); the index is built again", folder, error)
        return None
    log.info("%s: %s, from its checkpoint", store.file, segment.ann.factory)
    return segment


def catch_up(segment: Segment, store: Store) -> None:
    """Apply all writes that the segment lacks, and perhaps some that arrive in the meantime."""
    last_drop = store.last_drop  # read first: later deletions are looked at again in the next call
    for rows, payloads, vectors in _batches(store, segment.last_row, store.last_row):
        segment.append(rows, payloads, vectors)
    deletions = None if segment.last_drop is None else store.deletions_after(segment.last_drop)
    if deletions is None:  # more than the store remembers
        segment.drop(np.setdiff1d(segment.rows, store.rows(), assume_unique=True).tolist())
    else:
        segment.drop(list(deletions))
    segment.last_drop = last_drop


def _batches(store: Store, after: int, until: int) -> Iterator[tuple[list[int], list[dict[str, Any]], np.ndarray]]:
    """Yield (rows, payloads, vectors [N, H]) of the rows in (after, until]."""
    for items in store.items_after(after, BATCH):
        batch = [item for item in items if item.row <= until]
        if not batch:
            return
        yield [i.row for i in batch], [i.payload for i in batch], np.stack([i.vector for i in batch])
