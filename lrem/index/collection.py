"""A live collection: items that come, change and go while it is searched, in one folder of one machine.

items.sqlite   the truth (store.py)
ann/           the search structure as of some row (checkpoint.py); the rest comes from the truth (building.py)
lock           held while `ann` is written

A write is in the store, durably, before it is searchable, and searchable before the call returns. Several processes may
have the folder open, each with its own search structure: who asks sees what any of them has written. Does not know
models, shards or HTTP.
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
from lrem.errors import BuildError, StoreError
from lrem.index import checkpoint
from lrem.index.ann import choose_factory
from lrem.index.building import build_segment, catch_up, load_segment
from lrem.index.columns import match_payloads
from lrem.index.filters import Filter, compile_filter
from lrem.index.payload import Hit, Page, encode_items, last_positions, valid_ids
from lrem.index.segment import Segment
from lrem.index.store import Store, StoredItem, parse_payloads

FORMAT = 2
ITEMS, ANN, LOCK = "items.sqlite", "ann", "lock"
PART = ".snapshot-"  # what a snapshot is put together in
DEAD_SHARE, DEAD_FROM = 0.2, 1000  # tombstones that are worth a rebuild
CLOSE_TIMEOUT_S = 3600.0  # for a rebuild, or another process's checkpoint, that is under way
ATTEMPTS = 20  # of a search whose finds are replaced by another process before they are read

log = logging.getLogger(__name__)


class Collection:
    """The collection in `folder`, opened; made there if `model` and `dimension` are given and the folder has none.

    Its calls may come from several threads. A write that failed half-way closes it; opening it again brings it to the
    state of the store.

    Args:
        model: fingerprint of the model that embeds items and queries; None takes that of a collection that is there.
        dimension: length of a vector, H.
        factory: Faiss factory string; None chooses by size.

    Raises:
        StoreError: it was made with another model or dimension, is damaged, or is not there.
        BuildError: Faiss does not take the factory.
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
        self._write, self._search = threading.RLock(), threading.RLock()  # taken in this order
        self._rebuilding = threading.Lock()  # taken before both
        self._retry_from = 0
        self.closed = False  # by `close`, or by a failure
        self._version = -1  # of the store, as the segment last took it in
        with suppress(TimeoutError), exclusive_lock(folder / LOCK, 0):  # unless another process is just writing
            checkpoint.tidy(folder, f".{ANN}.*.tmp", f"{PART}*")
        try:
            self.store = Store(folder / ITEMS, given | {"format": FORMAT}, create=len(given) == 2)
            self.model, self.dimension = str(self.store.about["model"]), int(self.store.about["dimension"])
            try:
                self._version = self.store.version
                self.segment = self._load()
                self._rebuild_if_due()
            except BaseException:
                self.store.close()
                raise
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{folder / ITEMS} is damaged ({error}): restore a snapshot") from error

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
            StoreError: the collection is closed.
        """
        vectors = np.ascontiguousarray(vectors, np.float32)
        texts = encode_items(ids, payloads, vectors, self.dimension)
        if not (kept := last_positions(ids)):
            return 0
        texts, vectors = [texts[i] for i in kept], vectors[kept]
        given = parse_payloads(texts)  # what the store will give back, so that filters see the same
        with self._write, self._or_close():
            rows, replaced = self.store.upsert([ids[i] for i in kept], texts, vectors)
            with self._search:
                if self.store.version != self._version or self.segment.last_row >= rows[0]:
                    self._catch_up()  # another process's rows stand between
                else:
                    self.segment.drop(replaced)
                    self.segment.take(rows, given, vectors)
        self._rebuild_if_due()
        return len(kept) - len(replaced)

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items; unknown ids are passed over. Returns how many there were. Raises StoreError where closed."""
        with self._write, self._or_close():
            dropped = self.store.delete(valid_ids(ids))
            with self._search:
                self.segment.drop(dropped)
        self._rebuild_if_due()
        return len(dropped)

    def get(self, ids: Sequence[str]) -> dict[str, StoredItem]:
        """item_id → the item, of the ids that are there. Raises StoreError where closed."""
        return self.store.get(valid_ids(ids))

    def count(self, where: Mapping[str, Any] | None = None) -> int:
        """How many items match a filter (see filters.py). Raises FilterError; StoreError where closed."""
        wanted = None if where is None else compile_filter(where)
        self._refresh()
        with self._search:
            self._must_be_open()
            return self.segment.count(wanted)

    def scroll(self, limit: int, after: str = "", where: Mapping[str, Any] | None = None) -> Page:
        """Up to `limit` items that match, in the order of their ids, from behind the id `after`.

        Raises:
            FilterError: the filter cannot be read.
            ValueError: a limit below 1.
            StoreError: the collection is closed.
        """
        if limit < 1:
            raise ValueError(f"limit {limit}: at least 1 is needed")
        wanted = None if where is None else compile_filter(where)
        found: list[tuple[str, dict[str, Any]]] = []
        while True:
            part = self.store.scroll(after, max(limit, 100))
            for (_, item_id, payload), fits in zip(part, match_payloads([p for _, _, p in part], wanted), strict=True):
                if len(found) == limit:
                    return Page(found, after)
                after = item_id
                if fits:
                    found.append((item_id, payload))
            if not part:
                return Page(found, None)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        where: Mapping[str, Any] | None = None,
        exact: bool = False,
        effort: float = 1.0,
    ) -> list[list[Hit]]:
        """The k best items of each query among those that match, best first.

        Args:
            queries: [Q, H] float32, finite.
            where: a filter, see filters.py.
            exact: compare with every item that matches, whatever the structure.
            effort: how far an approximate structure searches, in multiples of what is usual.

        Raises:
            FilterError: the filter cannot be read.
            ValueError: vectors of another dimension or with NaN, or k below 1.
            StoreError: the collection is closed.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise ValueError(f"queries of shape {list(queries.shape)}: vectors of {self.dimension} numbers are needed")
        if k < 1 or not np.isfinite(queries).all():
            raise ValueError(f"k is {k}, at least 1 is needed" if k < 1 else "a query's vector is not finite")
        wanted = None if where is None else compile_filter(where)
        for _ in range(ATTEMPTS):
            self._refresh()
            try:
                with self._search:
                    return self._hits(queries, k, wanted, exact, effort)
            except KeyError:  # found, and replaced before it was read
                self._write.acquire()  # until a writer of this process has made it searchable
                self._write.release()
        raise StoreError(f"{self.folder}: its items change faster than they can be searched: write less at once")

    def _refresh(self) -> None:
        """Take in what other processes have written."""
        self._must_be_open()
        if self.store.version != self._version:
            with self._write, self._search:
                self._must_be_open()
                self._catch_up()
            self._rebuild_if_due()

    def _catch_up(self) -> None:
        version = self.store.version
        try:
            catch_up(self.segment, self.store)
        except BaseException:
            self._give_up()
            raise
        self._version = version

    def _hits(self, queries: np.ndarray, k: int, wanted: Filter | None, exact: bool, effort: float) -> list[list[Hit]]:
        self._must_be_open()
        found = self.segment.search(queries, k, wanted, self.store.vectors, exact, effort)
        items = self.store.read(list({row for hits in found for row, _ in hits}))
        return [[Hit(items[row][0], score, items[row][1].copy()) for row, score in hits] for hits in found]

    def stats(self) -> dict[str, Any]:
        """What there is: items, tombstones, the structure and why, bytes on disk."""
        self._refresh()
        factory, reason = choose_factory(len(self), self.dimension, self.factory)
        files = [*self.folder.glob(f"{ITEMS}*"), *self.folder.glob(f"{ANN}/*")]
        return {
            "items": len(self),
            "tombstones": self.segment.dead,
            "model": self.model,
            "dimension": self.dimension,
            "factory": self.segment.ann.factory,
            "chosen": f"{factory} ({reason})",
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
            "rebuilding": self._rebuilding.locked(),
        }

    def rebuild(self) -> None:
        """Make the search structure anew from the store, without tombstones, while it is searched and written to."""
        with self._rebuilding:
            self._rebuild()
        self._rebuild_if_due()  # of what came meanwhile

    def _rebuild(self) -> None:
        self._must_be_open()
        fresh = build_segment(self.store, self.factory)
        with self._write:
            catch_up(fresh, self.store)
            with self._search:
                self.segment = fresh
        self.save()

    def save(self, folder: Path | None = None) -> None:
        """Keep the search structure on disk, here or in `folder`, so that opening need not build it.

        Writers wait while it is written, searches go on.
        """
        with self.alone() if folder is None else nullcontext():
            checkpoint.write(self.segment, folder or self.folder / ANN, self._unchanged())

    def alone(self) -> AbstractContextManager[None]:
        """Nobody else writes checkpoints or snapshots in the folder meanwhile. Raises TimeoutError."""
        return exclusive_lock(self.folder / LOCK, CLOSE_TIMEOUT_S)

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        with self._write:
            self._must_be_open()
            yield

    def wait(self, timeout_s: float) -> None:
        """Wait for a rebuild in the background. Raises TimeoutError."""
        if not self._rebuilding.acquire(timeout=timeout_s):
            raise TimeoutError(f"{self.folder}: the index was not rebuilt within {timeout_s:g} s")
        self._rebuilding.release()

    def close(self) -> None:
        """Let go of the folder, once rebuild, writes and searches under way have ended; writes are on disk already."""
        if not self._rebuilding.acquire(timeout=CLOSE_TIMEOUT_S):
            raise TimeoutError(f"{self.folder}: its rebuild did not end within {CLOSE_TIMEOUT_S:g} s")
        try:
            with self._write, self._search:
                self.closed = True
                self.store.close()
        finally:
            self._rebuilding.release()

    def _must_be_open(self) -> None:
        if self.closed:
            raise StoreError(f"{self.folder} is closed: open the collection again")

    @contextmanager
    def _or_close(self) -> Iterator[None]:
        """A write that may be in the store and is not searchable: rather no answers than wrong ones."""
        self._must_be_open()
        try:
            yield
        except sqlite3.Error:  # undone whole
            raise
        except BaseException:
            with self._search:
                self._give_up()
            raise

    def _give_up(self) -> None:
        self.closed = True
        self.store.close()
        log.exception("%s: store and index may differ now; close the collection and open it again", self.folder)

    def _load(self) -> Segment:
        segment = load_segment(self.store, self.folder / ANN)
        try:
            segment = build_segment(self.store, self.factory) if segment is None else segment
        except BuildError:
            log.exception("%s: search is exact for now", self.folder)
            self._retry_from = self.store.last_row + DEAD_FROM
            segment = build_segment(self.store, "Flat")
        catch_up(segment, self.store)
        return segment

    def _rebuild_if_due(self) -> None:
        """Start a rebuild in the background where tombstones, growth or another factory make it worth while."""
        segment = self.segment
        factory, _ = choose_factory(segment.live, self.dimension, self.factory)
        changed = factory != segment.ann.factory and (factory == self.factory or segment.live > segment.built_for)
        stale = segment.dead > max(DEAD_FROM, DEAD_SHARE * segment.live)
        if (changed or stale) and segment.last_row >= self._retry_from and self._rebuilding.acquire(blocking=False):
            try:
                threading.Thread(target=self._rebuild_aside, name=f"rebuild {self.folder}", daemon=True).start()
            except BaseException:
                self._rebuilding.release()
                raise

    def _rebuild_aside(self) -> None:
        """A rebuild by a thread of its own, which releases the lock that its starter took."""
        try:
            self._rebuild()
        except Exception:
            log.exception("%s: the rebuild failed, it is tried again after %d writes", self.folder, DEAD_FROM)
            self._retry_from = self.segment.last_row + DEAD_FROM
        finally:
            self._rebuilding.release()
        if not self.closed:
            self._rebuild_if_due()  # of what came meanwhile
