"""The backend of one generation: its query path, its item path, and whether its deployments answer."""

import asyncio

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from lrem.config import ServeConfig
from ray_apps.serving.calls import call
from ray_apps.serving.handles import GenerationHandles, RemoteMethod
from ray_apps.serving.item_path import ItemPath
from ray_apps.serving.metrics import ServingMetrics
from ray_apps.serving.query_path import QueryPath


class SearchBackend:
    """One generation of model and index, as the ingress calls it."""

    def __init__(self, handles: GenerationHandles, settings: ServeConfig, metrics: ServingMetrics) -> None:
        self.handles = handles
        self.query_path = QueryPath(handles, settings, metrics)
        self.item_path = ItemPath(handles)

    async def unready(self, timeout_s: float) -> list[str]:
        """Return the names of the deployments that do not answer a ping within `timeout_s`."""
        pings = {"reasoner": self.handles.reasoner.ping, "embedder": self.handles.embedder.ping}
        pings |= {f"shard {i}": shard.ping for i, shard in enumerate(self.handles.shards)}
        ready = await asyncio.gather(*(_answers(ping, timeout_s) for ping in pings.values()))
        return [name for name, answered in zip(pings, ready, strict=True) if not answered]


async def _answers(ping: RemoteMethod[[], None], timeout_s: float) -> bool:
    try:
        async with asyncio.timeout(timeout_s):
            await call(ping)
    except (TimeoutError, RayError, RayServeException):
        return False
    return True
