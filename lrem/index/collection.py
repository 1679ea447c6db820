"""A live collection: items that come, change and go while it is searched, in one folder of one process.

items.sqlite   the truth (store.py)
ann/           the search structure as of some row (checkpoint.py); anything missing is taken from the truth
lock           held by the process that has it open

A write is in the store, durably, before it is searchable, and searchable before the call returns. Knows how store and
segment go together; does not know models, shards or HTTP.
"""

import fcntl
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrem.index import checkpoint
from lrem.index.ann import Ann, choose
from lrem.index.filters import Filter, parse
from lrem.index.segment import Segment
from lrem.index.store import Store, Stored, StoreError
from lrem.index.vector_index import Hit

FORMAT = 1
ITEMS, ANN, LOCK = "items.sqlite", "ann", "lock"
MAX_ID = 512  # characters
DEAD_SHARE, DEAD_FROM = 0.2, 1000  # tombstones that are worth a rebuild
SAMPLE = 200_000  # vectors that a structure is trained on
CLOSE_TIMEOUT_S = 3600.0  # for a rebuild that is under way
BATCH = 5000  # items read from the store at a time

log = logging.getLogger(__name__)


class ItemError(ValueError):
    """An item that cannot be written; the message names it and the remedy."""


class Page(NamedTuple):
    """A part of a scroll: (item_id, payload) of each item; `after` asks for the next part, None where there is none."""

    items: list[tuple[str, dict[str, Any]]]
    after: str | None


class Collection:
    """The collection in `folder`, opened; made there if `model` and `dimension` are given and the folder has none.

    Args:
        model: fingerprint of the model that embeds items and queries; None takes that of a collection that is there.
        dimension: length of a vector, H.
        factory: Faiss factory string; None chooses by size.

    Raises:
        StoreError: it was made with another model or dimension, is damaged, is open in another process, or is not
            there.
    """

    def __init__(
        self, folder: Path, model: str | None = None, dimension: int | None = None, factory: str | None = None
    ) -> None:
        given = {name: value for name, value in (("model", model), ("dimension", dimension)) if value is not None}
        if len(given) < 2 and not (folder / ITEMS).exists():
            raise StoreError(f"{folder} holds no collection: build one, or restore a snapshot")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.factory = folder, factory
        self._lock_file = _lock(folder / LOCK)
        try:
            self.store = Store(folder / ITEMS, given | {"format": FORMAT})
            self.model, self.dimension = str(self.store.about["model"]), int(self.store.about["dimension"])
            self._write, self._search = threading.RLock(), threading.RLock()  # taken in this order
            self._rebuilding = threading.Lock()
            self._thread: threading.Thread | None = None
            self.segment = self._load()
        except BaseException:
            self._lock_file.close()
            raise

    def __len__(self) -> int:
        return self.segment.live

    def upsert(self, ids: Sequence[str], payloads: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> int:
        """Write items, all or none; one that is there is replaced, of one that stands twice the last counts.

        Args:
            payloads: JSON objects; strings, numbers, truth values and lists of them can be filtered by.
            vectors: [N, H] float32 of unit length.

        Returns:
            How many of them were new.

        Raises:
            ItemError: an id, payload or vector that cannot be kept.
        """
        vectors = self._checked(ids, payloads, vectors)
        last = {item_id: i for i, item_id in enumerate(ids)}
        ids, kept = list(last), list(last.values())
        payloads, vectors = [payloads[i] for i in kept], vectors[kept]
        if not ids:
            return 0
        with self._write:
            rows, replaced = self.store.upsert(ids, payloads, vectors)
            with self._search:
                self.segment.drop(replaced)
                self.segment.take(rows, payloads, vectors)
        self._rebuild_if_due()
        return len(ids) - len(replaced)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items; unknown ids are passed over. Returns how many there were."""
        with self._write:
            dropped = self.store.delete(list(dict.fromkeys(ids)))
            with self._search:
                self.segment.drop(dropped)
        self._rebuild_if_due()
        return len(dropped)

    def get(self, ids: Sequence[str]) -> dict[str, Stored]:
        """item_id → the item, of the ids that are there."""
        return self.store.get(ids)

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many items match a filter (see filters.py). Raises FilterError."""
        wanted = _wanted(where)
        with self._search:
            return self.segment.count(wanted)

    def scroll(self, limit: int, after: str = "", where: Mapping[str, Any] | None = None) -> Page:
        """Up to `limit` items that match, in the order of their ids, from behind the id `after`. Raises FilterError."""
        wanted = _wanted(where)
        found: list[tuple[str, dict[str, Any]]] = []
        while True:
            part = self.store.scroll(after, max(limit, 100))
            with self._search:
                fits = self.segment.matching([row for row, _, _ in part], wanted)
            for (_, item_id, payload), fit in zip(part, fits, strict=True):
                if len(found) == limit:
                    return Page(found, after)
                after = item_id
                if fit:
                    found.append((item_id, payload))
            if not part:
                return Page(found, None)

    def search(self, queries: np.ndarray, k: int, where: Mapping[str, Any] | None = None) -> list[list[Hit]]:
        """The k best items of each query among those that match, best first.

        Args:
            queries: [Q, H] float32.
            where: a filter, see filters.py.

        Raises:
            FilterError: the filter cannot be read.
            ValueError: vectors of another dimension.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"queries of shape {list(queries.shape)}: vectors of {self.dimension} numbers are needed")
        wanted = _wanted(where)
        try:
            with self._search:
                return self._hits(queries, k, wanted)
        except KeyError:  # a writer was between store and segment
            with self._write, self._search:
                return self._hits(queries, k, wanted)

    def _hits(self, queries: np.ndarray, k: int, wanted: Filter | None) -> list[list[Hit]]:
        found = self.segment.search(queries, k, wanted, self.store.vectors)
        items = self.store.read(list({row for hits in found for row, _ in hits}))
        return [[Hit(items[row][0], score, items[row][1].copy()) for row, score in hits] for hits in found]

    def stats(self) -> dict[str, Any]:
        """What there is: items, tombstones, the structure and why, bytes on disk."""
        factory, reason = choose(len(self), self.dimension, self.factory)
        return {
            "items": len(self),
            "tombstones": self.segment.dead,
            "model": self.model,
            "dimension": self.dimension,
            "factory": self.segment.ann.factory,
            "chosen": f"{factory} ({reason})",
            "bytes": sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file()),
            "rebuilding": self._rebuilding.locked(),
        }

    def rebuild(self) -> None:
        """Make the search structure anew from the store, without tombstones, while it is searched and written to."""
        with self._rebuilding:
            fresh = self._build()
            with self._write:
                self._catch_up(fresh)
                with self._search:
                    self.segment = fresh
            self.save()

    def save(self, folder: Path | None = None) -> None:
        """Keep the search structure on disk, here or in `folder`, so that opening need not build it.

        Writers wait meanwhile, searches go on.
        """
        with self._write:
            checkpoint.write(self.segment, folder or self.folder / ANN)

    def wait(self, timeout_s: float) -> None:
        """Wait for a rebuild in the background. Raises TimeoutError."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive():
                raise TimeoutError(f"{self.folder}: the index was not rebuilt within {timeout_s:g} s")

    def close(self) -> None:
        """Let go of the folder; writes are on disk already."""
        self.wait(CLOSE_TIMEOUT_S)
        self.store.close()
        self._lock_file.close()

    def _load(self) -> Segment:
        segment = checkpoint.read(self.folder / ANN, self.dimension)
        if segment is None:
            segment = self._build()
        else:
            for rows, payloads, _ in self._batches(0, segment.last_row):
                segment.describe(rows, payloads)
        self._catch_up(segment)
        return segment

    def _build(self) -> Segment:
        rows = self.store.rows()
        factory, reason = choose(len(rows), self.dimension, self.factory)
        log.info("%s: %s, %s", self.folder, factory, reason)
        chosen = np.random.default_rng(0).permutation(len(rows))[:SAMPLE] if factory != "Flat" else rows[:0]
        sample = self.store.vectors(rows[np.sort(chosen)]) if len(chosen) else np.empty((0, self.dimension), np.float32)
        segment, started = Segment(Ann.build(self.dimension, factory, sample), len(rows)), time.monotonic()
        for taken, payloads, vectors in self._batches(0, self.store.last_row):
            segment.take(taken, payloads, vectors)
        log.info("%s: %d items in %.1f s", self.folder, len(segment), time.monotonic() - started)
        return segment

    def _catch_up(self, segment: Segment) -> None:
        """Bring a segment to the state of the store."""
        for rows, payloads, vectors in self._batches(segment.last_row, self.store.last_row):
            segment.take(rows, payloads, vectors)
        segment.drop(np.setdiff1d(segment.rows, self.store.rows(), assume_unique=True))

    def _batches(self, after: int, until: int) -> Iterator[tuple[list[int], list[dict[str, Any]], np.ndarray]]:
        for part in self.store.since(after, BATCH):
            part = [item for item in part if item.row <= until]
            if not part:
                return
            yield [i.row for i in part], [i.payload for i in part], np.stack([i.vector for i in part])

    def _rebuild_if_due(self) -> None:
        """Start a rebuild in the background where tombstones or growth make it worth while."""
        segment = self.segment
        factory, _ = choose(segment.live, self.dimension, self.factory)
        grown = factory != segment.ann.factory and segment.live > segment.built_for
        stale = segment.dead > max(DEAD_FROM, DEAD_SHARE * segment.live)
        if (grown or stale) and not self._rebuilding.locked():
            self._thread = threading.Thread(target=self._rebuild_aside, name=f"rebuild {self.folder}", daemon=True)
            self._thread.start()

    def _rebuild_aside(self) -> None:
        try:
            self.rebuild()
        except Exception:
            log.exception("%s: the rebuild failed, the search goes on with the old structure", self.folder)

    def _checked(self, ids: Sequence[str], payloads: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> np.ndarray:
        if not len(ids) == len(payloads) == len(vectors):
            raise ItemError(f"{len(ids)} ids, {len(payloads)} payloads and {len(vectors)} vectors: send one of each")
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.shape != (len(ids), self.dimension):
            raise ItemError(
                f"vectors of shape {list(vectors.shape)}: this collection keeps {self.dimension} numbers each"
            )
        for item_id, payload in zip(ids, payloads, strict=True):
            _check_item(item_id, payload)
        lengths = np.linalg.norm(vectors, axis=1)
        wrong = np.flatnonzero(~np.isclose(lengths, 1, atol=1e-3))
        if len(wrong):
            raise ItemError(f"item '{ids[wrong[0]]}': its vector has length {lengths[wrong[0]]:.3f}, not 1")
        return vectors


def _check_item(item_id: Any, payload: Any) -> None:
    if not isinstance(item_id, str) or not 0 < len(item_id) <= MAX_ID:
        raise ItemError(f"item_id {item_id!r:.60}: a string of 1 to {MAX_ID} characters is needed")
    try:
        item_id.encode()
        if not isinstance(payload, Mapping):
            raise TypeError("not an object")
        json.dumps(payload, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ItemError(f"item '{item_id!a:.60}': its id or payload is no JSON ({error})") from error


def _wanted(where: Mapping[str, Any] | None) -> Filter | None:
    return None if where is None else parse(where)


def _lock(file: Path) -> Any:
    handle = file.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise StoreError(f"{file.parent} is open in another process: close it there") from None
    return handle
