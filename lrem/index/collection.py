"""A live collection: items that are written and deleted while they are searched, in one folder of one machine.

items.sqlite   the items (store.py)
ann/           the search structure up to some row (checkpoint.py); newer rows come from the items (building.py)
lock           held while `ann` is written

A write is durable before it is searchable, and searchable before the call returns. Several processes may open the
folder, each with its own search structure in memory; each sees what the others have written.
"""

import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from lrem.data.files import exclusive_lock
from lrem.errors import StoreError
from lrem.index import checkpoint
from lrem.index.ann import choose_factory
from lrem.index.building import MIN_TOMBSTONES, build_segment, catch_up, is_rebuild_due, open_segment
from lrem.index.columns import match_payloads
from lrem.index.filters import Filter, compile_filter
from lrem.index.payload import Hit, Page, encode_items, last_positions, valid_ids
from lrem.index.store import ItemRecord, Store, parse_payloads

FORMAT = 2
ITEMS, ANN, LOCK = "items.sqlite", "ann", "lock"
PART = ".snapshot-"  # prefix of a folder in which a snapshot is assembled
CLOSE_TIMEOUT_S = 3600.0  # waiting for a rebuild, or for another process's checkpoint
ATTEMPTS = 20  # of a search whose hits are replaced by another process before they are read

log = logging.getLogger(__name__)


class Collection:
    """The open collection in `folder`; created if the folder has none and `model` and `dimension` are given.

    Thread-safe. A write that is stored but cannot be made searchable closes the collection; opening it again recovers
    the state of the store.

    Args:
        model: fingerprint of the model that embeds items and queries; None: that of the existing collection.
        dimension: length of a vector, H; None: that of the existing collection.
        factory: Faiss factory string; None chooses by size.

    Raises:
        StoreError: the collection has another model or dimension, is damaged, or does not exist.
        BuildError: Faiss refuses the factory.
    """

    def __init__(
        self, folder: Path, model: str | None = None, dimension: int | None = None, factory: str | None = None
    ) -> None:
        given = {name: value for name, value in (("model", model), ("dimension", dimension)) if value is not None}
        if len(given) < 2 and not (folder / ITEMS).exists():
            raise StoreError(f"{folder} holds no collection: build one, or restore a snapshot")
        if dimension is not None:
            choose_factory(0, dimension, factory)
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.factory = folder, factory
        self._write, self._search = threading.RLock(), threading.RLock()  # acquired in this order
        self._rebuilding = threading.Lock()  # acquired before both
        self.closed = False  # True after `close` or a failure
        self._version = -1  # version of the store that the segment has
        with suppress(TimeoutError), exclusive_lock(folder / LOCK, 0):  # unless another process is writing there
            checkpoint.remove_leftovers(folder, f".{ANN}.*.tmp", f"{PART}*")
        try:
            self.store = Store(folder / ITEMS, given | {"format": FORMAT}, create=len(given) == 2)
            self.model, self.dimension = str(self.store.about["model"]), int(self.store.about["dimension"])
            try:
                self._version = self.store.version
                self.segment, self._retry_from = open_segment(self.store, self.folder / ANN, factory)
                self._rebuild_if_due()
            except BaseException:
                self.store.close()
                raise
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{folder / ITEMS} is damaged ({error}): restore a snapshot") from error

    def __len__(self) -> int:
        return self.segment.live

    def upsert(self, ids: Sequence[str], payloads: Sequence[Mapping[str, Any]], vectors: np.ndarray) -> int:
        """Insert or replace items, all or none. Of an item that is repeated, the last one counts.

        Args:
            payloads: JSON objects; filters can match strings, numbers, booleans and lists of them.
            vectors: [N, H] float32 of unit length.

        Returns:
            How many of the items are new.

        Raises:
            ItemError: an id, payload or vector is invalid.
            StoreError: the collection is closed.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        texts = encode_items(ids, payloads, vectors, self.dimension)
        if not (last := last_positions(ids)):
            return 0
        texts, vectors = [texts[i] for i in last], vectors[last]
        stored_payloads = parse_payloads(texts)  # filters must see what the store will return
        with self._write, self._close_on_failure():
            rows, replaced = self.store.upsert([ids[i] for i in last], texts, vectors)
            with self._search:
                if self.store.version != self._version or self.segment.last_row >= rows[0]:
                    self._catch_up()  # another process wrote in between
                else:
                    self.segment.drop(replaced)
                    self.segment.append(rows, stored_payloads, vectors)
        self._rebuild_if_due()
        return len(last) - len(replaced)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items and return how many existed; unknown ids are ignored. Raises StoreError if closed."""
        with self._write, self._close_on_failure():
            deleted = self.store.delete(valid_ids(ids))
            with self._search:
                self.segment.drop(deleted)
        self._rebuild_if_due()
        return len(deleted)

    def get(self, ids: Sequence[str]) -> dict[str, ItemRecord]:
        """Return item_id → item of the ids that exist. Raises StoreError if closed."""
        return self.store.get(valid_ids(ids))

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """Return how many items match a filter (see filters.py). Raises FilterError; StoreError if closed."""
        condition = None if where is None else compile_filter(where)
        self._refresh()
        with self._search:
            self._check_open()
            return self.segment.count(condition)

    def kinds(self, where: Mapping[str, Any]) -> dict[str, set[str]]:
        """Return field → what its values are, of the fields of a filter; `filters.require_comparable` explains."""
        self._refresh()
        with self._search:
            return self.segment.columns.kinds(compile_filter(where))

    def scroll(self, limit: int, after: str = "", where: Mapping[str, Any] | None = None) -> Page:
        """Return up to `limit` items that match and whose id is greater than `after`, in the order of ids.

        Raises:
            FilterError: the filter is invalid.
            ValueError: limit < 1.
            StoreError: the collection is closed.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}, but must be at least 1")
        condition = None if where is None else compile_filter(where)
        items: list[tuple[str, dict[str, Any]]] = []
        while True:
            part = self.store.scroll(after, max(limit, 100))
            matches = match_payloads([payload for _, _, payload in part], condition)
            for (_, item_id, payload), match in zip(part, matches, strict=True):
                if len(items) == limit:
                    return Page(items, after)
                after = item_id
                if match:
                    items.append((item_id, payload))
            if not part:
                return Page(items, None)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        effort: float = 1.0,
    ) -> list[list[Hit]]:
        """Return the k best items of each query among those that match, best first.

        Args:
            queries: [Q, H] float32, finite.
            where: a filter, see filters.py.
            exact: compare with every item that matches, whatever the structure.
            effort: how far an approximate structure searches, as a multiple of the default.

        Raises:
            FilterError: the filter is invalid.
            ValueError: vectors of another dimension or with NaN, or k < 1.
            StoreError: the collection is closed.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"queries of shape {list(queries.shape)}: [Q, {self.dimension}] is required")
        if k < 1 or not np.isfinite(queries).all():
            raise ValueError(f"k is {k}, but must be at least 1" if k < 1 else "a query's vector is not finite")
        condition = None if where is None else compile_filter(where)
        for _ in range(ATTEMPTS):
            self._refresh()
            try:
                with self._search:
                    return self._hits(queries, k, condition, exact, effort)
            except KeyError:  # a match was replaced before it was read
                self._write.acquire()  # wait until a writer of this process has made its items searchable
                self._write.release()
        raise StoreError(f"{self.folder}: items change faster than they can be searched; write fewer at once")

    def _refresh(self) -> None:
        """Apply what other processes have written."""
        self._check_open()
        if self.store.version != self._version:
            with self._write, self._search:
                self._check_open()
                self._catch_up()
            self._rebuild_if_due()

    def _catch_up(self) -> None:
        version = self.store.version
        try:
            catch_up(self.segment, self.store)
        except BaseException:
            self._fail()
            raise
        self._version = version

    def _hits(
        self, queries: np.ndarray, k: int, condition: Filter | None, exact: bool, effort: float
    ) -> list[list[Hit]]:
        self._check_open()
        matches = self.segment.search(queries, k, condition, self.store.vectors, exact, effort)
        items = self.store.read(list({row for line in matches for row, _ in line}))
        return [[Hit(items[row][0], score, items[row][1].copy()) for row, score in line] for line in matches]

    def stats(self) -> dict[str, Any]:
        """Return numbers of items and tombstones, the structure and the reason for it, and bytes on disk."""
        self._refresh()
        factory, reason = choose_factory(len(self), self.dimension, self.factory)
        files = [*self.folder.glob(f"{ITEMS}*"), *self.folder.glob(f"{ANN}/*")]
        return {
            "items": len(self),
            "tombstones": self.segment.tombstones,
            "model": self.model,
            "dimension": self.dimension,
            "factory": self.segment.ann.factory,
            "chosen": f"{factory} ({reason})",
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
            "rebuilding": self._rebuilding.locked(),
        }

    def rebuild(self) -> None:
        """Build the search structure again, without tombstones, while it is searched and written to."""
        with self._rebuilding:
            self._rebuild()
        self._rebuild_if_due()  # for writes that arrived in the meantime

    def _rebuild(self) -> None:
        self._check_open()
        fresh = build_segment(self.store, self.factory)
        with self._write:
            catch_up(fresh, self.store)
            with self._search:
                self.segment = fresh
        self.save()

    def _rebuild_if_due(self) -> None:
        """Start a rebuild in the background if one is due and none is running."""
        segment = self.segment
        due = is_rebuild_due(segment, self.dimension, self.factory) and segment.last_row >= self._retry_from
        if due and self._rebuilding.acquire(blocking=False):
            try:
                threading.Thread(target=self._rebuild_in_thread, name=f"rebuild {self.folder}", daemon=True).start()
            except BaseException:
                self._rebuilding.release()
                raise

    def _rebuild_in_thread(self) -> None:
        """Rebuild, then release the lock that `_rebuild_if_due` acquired."""
        try:
            self._rebuild()
        except Exception:
            log.exception("%s: the rebuild failed; it is tried again after %d writes", self.folder, MIN_TOMBSTONES)
            self._retry_from = self.segment.last_row + MIN_TOMBSTONES
        finally:
            self._rebuilding.release()
        if not self.closed:
            self._rebuild_if_due()  # for writes that arrived in the meantime

    @contextmanager
    def _no_rebuild(self, timeout_s: float) -> Iterator[None]:
        """Wait for a running rebuild, and let none start within the block. Raises TimeoutError."""
        if not self._rebuilding.acquire(timeout=timeout_s):
            raise TimeoutError(f"{self.folder}: waited {timeout_s:g} s for the index to be rebuilt")
        try:
            yield
        finally:
            self._rebuilding.release()

    def save(self, folder: Path | None = None) -> None:
        """Write a checkpoint of the search structure, here or to `folder`, so that opening need not build it.

        Writes wait meanwhile, searches do not.
        """
        with self.exclusive() if folder is None else nullcontext():
            checkpoint.write(self.segment, folder or self.folder / ANN, self._writes_paused())

    def exclusive(self) -> AbstractContextManager[None]:
        """Let no other process write checkpoints or snapshots in the folder. Raises TimeoutError."""
        return exclusive_lock(self.folder / LOCK, CLOSE_TIMEOUT_S)

    @contextmanager
    def _writes_paused(self) -> Iterator[None]:
        with self._write:
            self._check_open()
            yield

    def wait(self, timeout_s: float) -> None:
        """Wait for a rebuild in the background. Raises TimeoutError."""
        with self._no_rebuild(timeout_s):
            pass

    def close(self) -> None:
        """Close the folder after running rebuilds, writes and searches; writes are on disk already."""
        with self._no_rebuild(CLOSE_TIMEOUT_S), self._write, self._search:
            self.closed = True
            self.store.close()

    def _check_open(self) -> None:
        if self.closed:
            raise StoreError(f"{self.folder} is closed: open the collection again")

    @contextmanager
    def _close_on_failure(self) -> Iterator[None]:
        """Close the collection if a write may be stored but not searchable: no answers are better than wrong ones."""
        self._check_open()
        try:
            yield
        except sqlite3.Error:  # the store has rolled back
            raise
        except BaseException:
            with self._search:
                self._fail()
            raise

    def _fail(self) -> None:
        self.closed = True
        self.store.close()
        log.exception("%s: store and index may differ; close the collection and open it again", self.folder)
