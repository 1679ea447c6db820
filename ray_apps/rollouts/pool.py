"""The rollout pool: engines in Ray actors behind one queue, kept alive and on one version of the policy.

    ranks → RolloutPool (one asyncio actor) → N engine actors

The pool cuts what it is asked for into calls, gives each to an idle engine in order, and asks another engine again
where one dies or does not answer in time; a lost engine is replaced and given the present weights. A sync waits for
the calls before it and holds back those after it. Knows no model: engines do, see engines.py, which only their own
processes import.
"""

import asyncio
import itertools
import os
import pkgutil
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lrem.config import Config
from lrem.errors import RolloutError
from lrem.training.rollout import LoadReport, Rollout
from ray_apps.cluster import metrics
from ray_apps.cluster.resources import Bundle, bundle, shortage_message

Answer = TypeVar("Answer")
AGAIN_S = 1.0  # before an actor is made again
ENGINES = {
    "vllm": "ray_apps.rollouts.engines:VllmEngine",
    "transformers": "ray_apps.rollouts.engines:TransformersEngine",
}


class SyncReport(NamedTuple):
    """What a sync left behind: what each engine says it loaded, by its name."""

    loaded: dict[str, LoadReport]
    waited: float  # seconds for the calls before it
    restarts: int  # engines replaced so far


class EngineActor:
    """An engine in a process of its own.

    Args:
        engine: `module:class`. arguments: the engine's own.
    """

    def __init__(self, engine: str, *arguments: Any) -> None:
        self.engine = pkgutil.resolve_name(engine)(*arguments)

    def call(self, method: str, *arguments: Any) -> Any:
        """One of the engine's methods."""
        return getattr(self.engine, method)(*arguments)

    def pid(self) -> int:
        """The process that holds the engine."""
        return os.getpid()


class _Member:
    """One place of the pool; its actor may change."""

    def __init__(self, number: int, actor: ActorHandle) -> None:
        self.number, self.actor = number, actor

    @property
    def name(self) -> str:
        """As messages and logs call it."""
        return f"rollout actor {self.number}"


class RolloutPool:
    """An asyncio actor's state; see the module. Its methods may be called by any number of ranks at once.

    Args:
        engine: `module:class` of the engines. gpus: of each. gpu_memory: the share of a GPU's memory that one may take.
    """

    def __init__(self, folder: str, config: Config, engine: str, gpus: float, gpu_memory: float) -> None:
        self.folder, self.config, self.engine = folder, config, engine
        self.gpus, self.gpu_memory = gpus, gpu_memory
        self.rollout, self.run = config.rollout, config.run_dir.name
        self.idle: asyncio.Queue[_Member] = asyncio.Queue()
        self.room = asyncio.Semaphore(self.rollout.queue)
        self.members: list[_Member] = []
        self.group: PlacementGroup | None = None  # the room that the engines are in
        self.busy, self.answered, self.restarts = 0, 0, 0
        self.open, self.quiet = asyncio.Event(), asyncio.Event()
        self.open.set()
        self.quiet.set()
        self.weights: list[Any] = []  # a reference to the present weights, once there has been a sync
        self.present: LoadReport | None = None
        self.starting, self.syncing = asyncio.Lock(), asyncio.Lock()

    async def start(self) -> list[str]:
        """Start the engines, if they are not up; returns their names. Every other method does so by itself.

        Raises:
            RolloutError: one was not up within ray.start_timeout_s.
        """
        async with self.starting:
            if not self.members:
                await self._reserve()
                members = [_Member(i, self._actor(i)) for i in range(self.rollout.actors)]
                await asyncio.gather(*(self._ready(member) for member in members))
                for member in members:
                    self.idle.put_nowait(member)
                self.members = members
        return [member.name for member in self.members]

    async def close(self) -> None:
        """Give the room back: Ray keeps a group that an actor made until the whole job ends."""
        if self.group is not None:
            remove_placement_group(self.group)

    async def sample(self, queries: list[str], n: int, seeds: list[int]) -> list[list[Rollout]]:
        """n rollouts of each query, in order; `seeds`, one a query, make them repeatable.

        Raises:
            RolloutError: more than rollout.restarts engines were lost, or one could not be replaced.
        """

        def call(actor: ActorHandle, rows: slice) -> Any:
            return actor.call.remote("sample", queries[rows], n, seeds[rows])

        groups: list[list[Rollout]] = await self._spread(len(queries), call, "sample")
        tokens = sum(len(rollout.tokens) for group in groups for rollout in group)
        metrics.count("rollout_samples", n * len(queries), run=self.run)
        metrics.count("rollout_tokens", tokens, run=self.run)
        return groups

    async def reason(
        self, queries: list[str], temperature: float, seeds: list[int] | None, must_think: bool = False
    ) -> list[str]:
        """One closed reasoning of each query, in order, see `Engine.reason`. Raises as `sample`."""

        def call(actor: ActorHandle, rows: slice) -> Any:
            return actor.call.remote("reason", queries[rows], temperature, seeds and seeds[rows], must_think)

        return await self._spread(len(queries), call, "reason")

    async def sync(self, weights: list[Any], version: int) -> SyncReport:
        """Give every engine the weights under `version`, once the calls before are done.

        Args:
            weights: a list that holds one reference to weight_sync.Weights (Ray would fetch a bare one).

        Raises:
            RolloutError: an engine did not take them in time, or serves another version; it is named.
        """
        await self.start()
        async with self.syncing:  # one of a trainer that was lost may still be under way
            self.open.clear()
            try:
                started = time.monotonic()
                await self.quiet.wait()  # each of those calls has its own deadline
                waited = time.monotonic() - started
                self.weights, self.present = weights, None
                loaded = await asyncio.gather(*(self._update(member, weights, version) for member in self.members))
                self.present = loaded[0]
                metrics.gauge("rollout_version", version, run=self.run)
                return SyncReport(dict(zip((m.name for m in self.members), loaded, strict=True)), waited, self.restarts)
            finally:
                self.open.set()

    async def progress(self) -> int:
        """Grows with every call that is answered and every engine that is replaced."""
        return self.answered + self.restarts

    async def actors(self) -> list[ActorHandle]:
        """The present engines' handles."""
        await self.start()
        return [member.actor for member in self.members]

    async def _spread(self, count: int, call: Callable[[ActorHandle, slice], Any], what: str) -> list[Any]:
        """Cut `count` queries into calls, as even as they can be, and put the answers together again."""
        await self.start()
        pieces = max(1, -(-count // self.rollout.batch_size), min(count, len(self.members)))
        bounds = [count * i // pieces for i in range(pieces + 1)]
        parts = await asyncio.gather(*(self._answer(call, slice(*rows), what) for rows in itertools.pairwise(bounds)))
        return [answer for part in parts for answer in part]

    async def _answer(self, call: Callable[[ActorHandle, slice], Any], rows: slice, what: str) -> Any:
        await self.open.wait()
        self.busy += 1  # from here on a sync waits for it, so it must not wait for one
        started = time.monotonic()
        metrics.gauge("rollout_waiting", self.busy, run=self.run)
        self.quiet.clear()
        try:
            async with self.room:
                failed = False
                while True:
                    member = await self.idle.get()
                    try:
                        return await _within(call(member.actor, rows), self.rollout.timeout_s)
                    except (RayError, TimeoutError) as error:  # an engine that raised may hold half of a batch
                        if failed and isinstance(error, RayTaskError):
                            raise RolloutError(
                                f"{member.name} {_short(error)} when asked to {what}, as the one that was asked "
                                "before it did: no other engine would do better. Mend what it names and run again"
                            ) from error
                        failed = isinstance(error, RayTaskError)
                        await self._replace(member, what, self.rollout.timeout_s, error)
                    finally:
                        self.idle.put_nowait(member)
        finally:
            self.busy, self.answered = self.busy - 1, self.answered + 1
            metrics.gauge("rollout_waiting", self.busy, run=self.run)
            metrics.observe("rollout_seconds", time.monotonic() - started, run=self.run)
            if self.busy == 0:
                self.quiet.set()

    async def _update(self, member: _Member, weights: list[Any], version: int) -> LoadReport:
        """Weights into one engine; one that dies is replaced, one that hangs is an error: the fault may be theirs."""
        limit = self.rollout.sync_timeout_s
        while True:
            try:
                loaded: LoadReport = await _within(
                    member.actor.call.remote("update_weights", weights[0], version), limit
                )
                break
            except TimeoutError as error:
                raise RolloutError(
                    f"{member.name} did not take policy version {version} within {limit:.0f} s: see its log, or raise "
                    "rollout.sync_timeout_s"
                ) from error
            except RayActorError as error:
                await self._replace(member, "take new weights", limit, error)
            except RayError as error:
                raise RolloutError(f"{member.name} could not take policy version {version}: {_short(error)}") from error
        if loaded.version != version:
            raise RolloutError(f"{member.name} serves policy version {loaded.version} after a sync to {version}")
        return loaded

    async def _replace(self, member: _Member, what: str, limit: float, error: Exception) -> None:
        """Another actor in a member's place, on the present weights, found to sample as the others do."""
        reason = f"gave no answer within {limit:.0f} s" if isinstance(error, TimeoutError) else _short(error)
        self.restarts += 1
        metrics.count("rollout_restarts", 1, run=self.run)
        if self.restarts > self.rollout.restarts:
            raise RolloutError(
                f"{member.name} {reason} when asked to {what}, and {self.rollout.restarts} were replaced before it: "
                "see the log of its worker, or raise rollout.restarts"
            ) from error
        ray.kill(member.actor)
        member.actor = self._actor(member.number)
        await self._ready(member)
        if self.present is not None:
            loaded = await self._update(member, self.weights, self.present.version)
            check_load_report(member.name, loaded, self.present, self.rollout.probe_tolerance)

    async def _reserve(self) -> None:
        """Room for all engines at once; `close` gives it back."""
        bundles = [engine_bundle(self.config, self.gpus)] * self.rollout.actors
        self.group = placement_group(bundles, self.config.placement.engines)
        limit = self.config.ray.start_timeout_s
        try:
            await _within(self.group.ready(), limit)
        except TimeoutError as error:
            await self.close()
            raise RolloutError(shortage_message(bundles, f"{self.rollout.actors} rollout engines", limit)) from error

    def _actor(self, number: int) -> ActorHandle:
        place = PlacementGroupSchedulingStrategy(self.group, number)
        needs = engine_bundle(self.config, self.gpus)
        actor = ray.remote(
            num_cpus=needs.pop("CPU"), num_gpus=needs.pop("GPU", 0), resources=needs, scheduling_strategy=place
        )(EngineActor)
        seed = self.config.seed + number
        return actor.remote(self.engine, self.folder, self.rollout, seed, self.gpu_memory)

    async def _ready(self, member: _Member) -> None:
        """Wait until a member is up; one that was lost before it ran is sent again.

        For some time Ray goes on sending actors to a machine that has died.
        """
        limit = self.config.ray.start_timeout_s
        deadline = time.monotonic() + limit
        while True:
            try:
                await _within(member.actor.__ray_ready__.remote(), max(0.0, deadline - time.monotonic()))
                return
            except TimeoutError as error:
                raise RolloutError(
                    f"{member.name} was not up on {self.folder} within {limit:.0f} s: look at `ray status` for what is "
                    "missing, or raise ray.start_timeout_s"
                ) from error
            except RayError as error:
                failed = not isinstance(error, RayActorError) or error.actor_init_failed
                if failed or time.monotonic() > deadline:
                    raise RolloutError(f"{member.name} could not start on {self.folder}: {error}") from error
            await asyncio.sleep(AGAIN_S)
            member.actor = self._actor(member.number)


def engine_bundle(config: Config, gpus: float) -> Bundle:
    """What one engine takes of a machine."""
    return bundle(1.0, gpus, config.placement.rollouts)


async def _within(reference: Awaitable[Answer], limit: float) -> Answer:
    return await asyncio.wait_for(asyncio.ensure_future(reference), limit)


def _short(error: Exception) -> str:
    """The reason alone; Ray puts a traceback around it."""
    cause = getattr(error, "cause", None)
    return "was lost" if isinstance(error, RayActorError) else f"failed ({cause or error})"


def check_load_report(name: str, loaded: LoadReport, expected: LoadReport, tolerance: float) -> None:
    """Check what an engine says against what it should say.

    Raises:
        RolloutError: another version or checksum, or a probe that differs by more than `tolerance` nats.
    """
    if (loaded.version, loaded.checksum) != (expected.version, expected.checksum):
        raise RolloutError(
            f"{name} holds policy version {loaded.version} with checksum {loaded.checksum:x}, version "
            f"{expected.version} with {expected.checksum:x} was sent: the weight sync failed"
        )
    pairs = list(zip(loaded.probe, expected.probe, strict=True))
    alike = [(got, wanted) for got, wanted in pairs if got.tokens == wanted.tokens]
    worst = max((abs(got.log_probs[0] - wanted.log_probs[0]) for got, wanted in alike), default=0.0)
    # the same seeds draw the same tokens, but for one on the edge between two
    if worst > tolerance or len(alike) < len(pairs) - 1:
        raise RolloutError(
            f"{name} samples another policy than version {expected.version}: of the probe's {len(pairs)} tokens "
            f"{len(alike)} agree, their log-probabilities to {worst:.4f} nats (rollout.probe_tolerance={tolerance}): "
            "the weight sync failed"
        )
