"""From the store to a search structure: built anew, read from a checkpoint, or brought up to date.

Knows stores, segments and checkpoints; does not know who writes or searches meanwhile.
"""

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrem.index import checkpoint
from lrem.index.ann import Ann, choose_factory
from lrem.index.segment import Segment
from lrem.index.store import Store

BATCH = 5000  # items read from the store at a time

log = logging.getLogger(__name__)


def build_segment(store: Store, factory: str | None) -> Segment:
    """A segment of everything in the store but what is written meanwhile.

    Args:
        factory: Faiss factory string; None chooses by size.

    Raises:
        BuildError: Faiss does not take the factory.
    """
    count, dimension = len(store), int(store.about["dimension"])
    chosen, reason = choose_factory(count, dimension, factory)
    log.info("%s: %s, %s", store.file, chosen, reason)
    segment, started = Segment(Ann.build(dimension, chosen, store.sample), count), time.monotonic()
    for rows, payloads, vectors in _batches(store, 0, store.last_row):
        segment.take(rows, payloads, vectors)
    log.info("%s: %d items in %.1f s", store.file, len(segment), time.monotonic() - started)
    return segment


def load_segment(store: Store, folder: Path) -> Segment | None:
    """The segment whose checkpoint is in `folder`; None, and why in the log, where it is not one of this store."""
    segment = checkpoint.read(folder, int(store.about["dimension"]))
    if segment is None:
        return None
    try:
        if segment.last_row > store.last_row:
            raise KeyError("it is newer than the items")
        for rows, payloads, _ in _batches(store, 0, segment.last_row):
            segment.describe(rows, payloads)
    except KeyError as error:
        log.warning("%s does not fit its items (%s): the index is built anew", folder, error)
        return None
    log.info("%s: %s, as it was saved", store.file, segment.ann.factory)
    return segment


def catch_up(segment: Segment, store: Store) -> None:
    """Bring a segment to the state of its store, or to a newer one where somebody writes to it meanwhile."""
    last_drop = store.last_drop  # before the rest: what goes meanwhile is looked at again the next time
    for rows, payloads, vectors in _batches(store, segment.last_row, store.last_row):
        segment.take(rows, payloads, vectors)
    gone = None if segment.last_drop is None else store.dropped(segment.last_drop)
    segment.drop(np.setdiff1d(segment.rows, store.rows(), assume_unique=True).tolist() if gone is None else list(gone))
    segment.last_drop = last_drop


def _batches(store: Store, after: int, until: int) -> Iterator[tuple[list[int], list[dict[str, Any]], np.ndarray]]:
    for part in store.since(after, BATCH):
        part = [item for item in part if item.row <= until]
        if not part:
            return
        yield [i.row for i in part], [i.payload for i in part], np.stack([i.vector for i in part])
