"""The engines of a pool as Ray actors: their place in the cluster, their start, and their replacement."""

import asyncio
import os
import pkgutil
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lrem.config import Config
from lrem.errors import RolloutError
from ray_apps.cluster.resources import Bundle, bundle, shortage_message

T = TypeVar("T")
RESTART_DELAY_S = 1.0
ENGINES = {
    "vllm": "ray_apps.rollouts.engines:VllmEngine",
    "transformers": "ray_apps.rollouts.engines:TransformersEngine",
}


class EngineActor:
    """An engine in its own process.

    Args:
        engine: `module:class`. arguments: the engine's own.
    """

    def __init__(self, engine: str, *arguments: Any) -> None:
        self.engine = pkgutil.resolve_name(engine)(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call one of the engine's methods."""
        return getattr(self.engine, method)(*arguments)

    def pid(self) -> int:
        """Return the id of the process that holds the engine."""
        return os.getpid()


class EngineSlot:
    """One place of the pool; its actor may be replaced."""

    def __init__(self, number: int, actor: ActorHandle) -> None:
        self.number, self.actor = number, actor

    @property
    def name(self) -> str:
        """The slot's name in messages and logs."""
        return f"rollout actor {self.number}"


class EngineActors:
    """Starts the engines of one pool on resources that are reserved for all of them together.

    Args:
        engine: `module:class` of the engines. gpus: GPUs per engine. gpu_memory: share of a GPU's memory per engine.
    """

    def __init__(self, folder: str, config: Config, engine: str, gpus: float, gpu_memory: float) -> None:
        self.folder, self.config, self.engine = folder, config, engine
        self.gpus, self.gpu_memory = gpus, gpu_memory
        self.group: PlacementGroup | None = None

    async def start(self) -> list[EngineSlot]:
        """Reserve the resources, and start all engines.

        Raises:
            RolloutError: one was not ready within ray.start_timeout_s.
        """
        await self._reserve()
        slots = [EngineSlot(i, self._new_actor(i)) for i in range(self.config.rollout.actors)]
        await asyncio.gather(*(self._wait_until_ready(slot) for slot in slots))
        return slots

    async def replace(self, slot: EngineSlot) -> None:
        """Kill a slot's actor and start another one in its place. Raises as `start`."""
        ray.kill(slot.actor)
        slot.actor = self._new_actor(slot.number)
        await self._wait_until_ready(slot)

    def release(self) -> None:
        """Free the resources: Ray keeps a placement group that an actor created until the whole job ends."""
        if self.group is not None:
            remove_placement_group(self.group)

    async def _reserve(self) -> None:
        bundles = [engine_bundle(self.config, self.gpus)] * self.config.rollout.actors
        self.group = placement_group(bundles, self.config.placement.engines)
        limit = self.config.ray.start_timeout_s
        try:
            await within(self.group.ready(), limit)
        except TimeoutError as error:
            self.release()
            message = shortage_message(bundles, f"{self.config.rollout.actors} rollout engines", limit)
            raise RolloutError(message) from error

    def _new_actor(self, number: int) -> ActorHandle:
        place = PlacementGroupSchedulingStrategy(self.group, number)
        needs = engine_bundle(self.config, self.gpus)
        actor = ray.remote(
            num_cpus=needs.pop("CPU"), num_gpus=needs.pop("GPU", 0), resources=needs, scheduling_strategy=place
        )(EngineActor)
        seed = self.config.seed + number
        return actor.remote(self.engine, self.folder, self.config.rollout, seed, self.gpu_memory)

    async def _wait_until_ready(self, slot: EngineSlot) -> None:
        """Wait until a slot's actor is up. One that was lost before it ran is started again.

        For some time Ray continues to send actors to a machine that has died.
        """
        limit = self.config.ray.start_timeout_s
        deadline = time.monotonic() + limit
        while True:
            try:
                await within(slot.actor.__ray_ready__.remote(), max(0.0, deadline - time.monotonic()))
                return
            except TimeoutError as error:
                raise RolloutError(
                    f"{slot.name} did not start on {self.folder} within {limit:.0f} s: see `ray status` for missing "
                    "resources, or raise ray.start_timeout_s"
                ) from error
            except RayError as error:
                failed = not isinstance(error, RayActorError) or error.actor_init_failed
                if failed or time.monotonic() > deadline:
                    raise RolloutError(f"{slot.name} could not start on {self.folder}: {error}") from error
            await asyncio.sleep(RESTART_DELAY_S)
            slot.actor = self._new_actor(slot.number)


def engine_bundle(config: Config, gpus: float) -> Bundle:
    """Return the resources that one engine needs."""
    return bundle(1.0, gpus, config.placement.rollouts)


async def within(reference: Awaitable[T], limit: float) -> T:
    """Await a reference for at most `limit` seconds; raises TimeoutError after that."""
    return await asyncio.wait_for(asyncio.ensure_future(reference), limit)
