"""The backend of the live generation: follows the live record, and holds writes while the index is being replaced."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ray import serve

from lrem.config import ServeConfig
from ray_apps.serving import live_record
from ray_apps.serving.errors import ServiceError
from ray_apps.serving.handles import GenerationHandles, connect
from ray_apps.serving.live_record import LiveRecord
from ray_apps.serving.metrics import ServingMetrics
from ray_apps.serving.search_backend import SearchBackend

log = logging.getLogger(__name__)


class LiveBackend:
    """The backend that new requests use: `current` changes when another generation becomes live.

    Args:
        handles: use these for ever; None follows the live record.

    Raises:
        RuntimeError: no handles are given and no generation is live.
    """

    current: SearchBackend

    def __init__(self, handles: GenerationHandles | None, settings: ServeConfig, metrics: ServingMetrics) -> None:
        self.settings, self.metrics = settings, metrics
        self._writes, self._writable, self._application = 0, asyncio.Event(), ""
        self._writable.set()
        if handles is not None:
            self.current = SearchBackend(handles, settings, metrics)
            return
        record = live_record.read()
        if record is None:
            raise RuntimeError("no generation is live: start the application with `lrem serve`")
        self._follow(record)
        self._following = asyncio.get_running_loop().create_task(self._keep_following(record))

    @asynccontextmanager
    async def write(self) -> AsyncIterator[SearchBackend]:
        """Yield the backend to write to, after the end of a replacement that is in progress.

        Raises:
            ServiceError: 503, the replacement did not end in time.
        """
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                await self._writable.wait()
        except TimeoutError as error:
            raise ServiceError(503, "the index is being replaced: write again later", "replacing", 5) from error
        self._writes += 1
        try:
            yield self.current
        finally:
            self._writes -= 1

    def _follow(self, record: LiveRecord) -> None:
        if self._application != record.application:
            handles = connect(record.application, record.model, record.shards)
            self.current = SearchBackend(handles, self.settings, self.metrics)
            self._application = record.application
        if record.paused:
            self._writable.clear()
        else:
            self._writable.set()

    async def _keep_following(self, record: LiveRecord) -> None:
        """Poll the record; acknowledge it once the writes that began before its pause have ended."""
        acknowledged, replica = "", serve.get_replica_context().replica_id.unique_id
        while True:
            try:
                latest = await asyncio.to_thread(live_record.read)
                record = record if latest is None else latest
                self._follow(record)
                if record.revision != acknowledged and not (record.paused and self._writes):
                    await asyncio.to_thread(live_record.acknowledge, record, replica)
                    acknowledged = record.revision
            except Exception:  # the store may be away for a moment: continue with the last record
                log.exception("the live record cannot be read")
            await asyncio.sleep(live_record.POLL_S)
