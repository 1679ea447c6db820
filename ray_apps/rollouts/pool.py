"""The rollout pool: engines in Ray actors behind one queue, kept alive and on one version of the policy.

    ranks → RolloutPool (one asyncio actor) → N engine actors

The pool splits requests into calls and gives each to an idle engine, in order. If an engine dies or misses its
deadline, it is replaced and loads the current weights, and another engine takes its call. A sync waits for the calls
before it and holds back those after it. Models live in the engines' own processes only, see engines.py.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from lrem.config import Config
from lrem.errors import RolloutError
from lrem.training.rollout import LoadReport, Rollout, SyncReport
from ray_apps.cluster import metrics
from ray_apps.rollouts.engine_actors import EngineActors, EngineSlot, within

Call = Callable[[ActorHandle, slice], Any]  # sends a slice of a request's queries to an engine


class RolloutPool:
    """An asyncio actor's state; see the module. Any number of ranks may call its methods at once.

    Args:
        engine: `module:class` of the engines. gpus: GPUs per engine. gpu_memory: share of a GPU's memory per engine.
    """

    def __init__(self, folder: str, config: Config, engine: str, gpus: float, gpu_memory: float) -> None:
        self.config, self.rollout, self.run = config, config.rollout, config.run_dir.name
        self.engines = EngineActors(folder, config, engine, gpus, gpu_memory)
        self.slots: list[EngineSlot] = []
        self.idle: asyncio.Queue[EngineSlot] = asyncio.Queue()
        self.admission = asyncio.Semaphore(self.rollout.queue)
        self.in_flight, self.answered, self.restarts = 0, 0, 0
        self.accepting, self.drained = asyncio.Event(), asyncio.Event()
        self.accepting.set()
        self.drained.set()
        self.weights: list[Any] = []  # one reference to the current weights, after the first sync
        self.current: LoadReport | None = None
        self.starting, self.syncing = asyncio.Lock(), asyncio.Lock()

    async def start(self) -> list[str]:
        """Start the engines if they are not up; return their names. Every other method does so too.

        Raises:
            RolloutError: one was not up within ray.start_timeout_s.
        """
        async with self.starting:
            if not self.slots:
                slots = await self.engines.start()
                for slot in slots:
                    self.idle.put_nowait(slot)
                self.slots = slots
        return [slot.name for slot in self.slots]

    async def close(self) -> None:
        """Free the engines' resources."""
        self.engines.release()

    async def sample(self, queries: list[str], n: int, seeds: list[int]) -> list[list[Rollout]]:
        """Return n rollouts of each query, in order.

        Args:
            seeds: one per query; they make the rollouts repeatable.

        Raises:
            RolloutError: more than rollout.restarts engines were lost, or one could not be replaced.
        """

        def call(actor: ActorHandle, rows: slice) -> Any:
            return actor.call.remote("sample", queries[rows], n, seeds[rows])

        groups: list[list[Rollout]] = await self._split(len(queries), call, "sample")
        tokens = sum(len(rollout.tokens) for group in groups for rollout in group)
        metrics.count("rollout_samples", n * len(queries), run=self.run)
        metrics.count("rollout_tokens", tokens, run=self.run)
        return groups

    async def reason(
        self, queries: list[str], temperature: float, seeds: list[int] | None, must_think: bool = False
    ) -> list[str]:
        """Return one reasoning of each query, in order, see `Engine.reason`. Raises as `sample`."""

        def call(actor: ActorHandle, rows: slice) -> Any:
            return actor.call.remote("reason", queries[rows], temperature, seeds and seeds[rows], must_think)

        return await self._split(len(queries), call, "reason")

    async def sync(self, weights: list[Any], version: int) -> SyncReport:
        """Load the weights into every engine under `version`, once the calls before are answered.

        Args:
            weights: a list with one reference to a weight_sync.PackedState (Ray would fetch a bare reference).

        Raises:
            RolloutError: an engine did not load them in time, or serves another version; the message names it.
        """
        await self.start()
        async with self.syncing:  # the sync of a trainer that was lost may still be running
            self.accepting.clear()
            try:
                started = time.monotonic()
                await self.drained.wait()  # each call has its own deadline
                waited_s = time.monotonic() - started
                self.weights, self.current = weights, None
                reports = await asyncio.gather(*(self._load(slot, weights, version) for slot in self.slots))
                self.current = reports[0]
                metrics.gauge("rollout_version", version, run=self.run)
                names = [slot.name for slot in self.slots]
                return SyncReport(dict(zip(names, reports, strict=True)), waited_s, self.restarts)
            finally:
                self.accepting.set()

    async def progress(self) -> int:
        """Return a number that grows with every call answered and every engine replaced."""
        return self.answered + self.restarts

    async def actors(self) -> list[ActorHandle]:
        """Return the current engines' handles."""
        await self.start()
        return [slot.actor for slot in self.slots]

    async def _split(self, count: int, call: Call, method: str) -> list[Any]:
        """Split `count` queries into calls of equal size, and join the results in order."""
        await self.start()
        pieces = max(1, -(-count // self.rollout.batch_size), min(count, len(self.slots)))
        bounds = [count * i // pieces for i in range(pieces + 1)]
        calls = (self._admit(call, slice(*rows), method) for rows in itertools.pairwise(bounds))
        return [result for part in await asyncio.gather(*calls) for result in part]

    async def _admit(self, call: Call, rows: slice, method: str) -> Any:
        """Run one call once no sync is running and the queue has room."""
        await self.accepting.wait()
        self.in_flight += 1  # from here on a sync waits for this call, so the call must not wait for a sync
        started = time.monotonic()
        metrics.gauge("rollout_waiting", self.in_flight, run=self.run)
        self.drained.clear()
        try:
            async with self.admission:
                return await self._call(call, rows, method)
        finally:
            self.in_flight, self.answered = self.in_flight - 1, self.answered + 1
            metrics.gauge("rollout_waiting", self.in_flight, run=self.run)
            metrics.observe("rollout_seconds", time.monotonic() - started, run=self.run)
            if self.in_flight == 0:
                self.drained.set()

    async def _call(self, call: Call, rows: slice, method: str) -> Any:
        """Give one call to idle engines until one of them answers; the others are replaced."""
        raised_before = False
        while True:
            slot = await self.idle.get()
            try:
                return await within(call(slot.actor, rows), self.rollout.timeout_s)
            except (RayError, TimeoutError) as error:  # an engine that raised may hold half of a batch
                if raised_before and isinstance(error, RayTaskError):
                    raise RolloutError(
                        f"{slot.name} {_describe_failure(error)} in '{method}', as another engine did before it, so no "
                        "other engine would do better: fix the cause and run again"
                    ) from error
                raised_before = isinstance(error, RayTaskError)
                await self._replace(slot, f"'{method}'", self.rollout.timeout_s, error)
            finally:
                self.idle.put_nowait(slot)

    async def _load(self, slot: EngineSlot, weights: list[Any], version: int) -> LoadReport:
        """Load weights into one engine.

        An engine that dies is replaced. One that hangs is an error: the weights may be the cause.
        """
        limit = self.rollout.sync_timeout_s
        while True:
            try:
                update = slot.actor.call.remote("update_weights", weights[0], version)
                report: LoadReport = await within(update, limit)
                break
            except TimeoutError as error:
                raise RolloutError(
                    f"{slot.name} did not load policy version {version} within {limit:.0f} s: see its log, or raise "
                    "rollout.sync_timeout_s"
                ) from error
            except RayActorError as error:
                await self._replace(slot, "a weight sync", limit, error)
            except RayError as error:
                raise RolloutError(
                    f"{slot.name} could not load policy version {version}: {_describe_failure(error)}"
                ) from error
        if report.version != version:
            raise RolloutError(f"{slot.name} serves policy version {report.version} after a sync to {version}")
        return report

    async def _replace(self, slot: EngineSlot, task: str, limit: float, error: Exception) -> None:
        """Start another engine in a slot, load the current weights, and check that it samples as the others do."""
        reason = f"gave no answer within {limit:.0f} s" if isinstance(error, TimeoutError) else _describe_failure(error)
        self.restarts += 1
        metrics.count("rollout_restarts", 1, run=self.run)
        if self.restarts > self.rollout.restarts:
            raise RolloutError(
                f"{slot.name} {reason} in {task}, after {self.rollout.restarts} engines were replaced: see its log, "
                "or raise rollout.restarts"
            ) from error
        await self.engines.replace(slot)
        if self.current is not None:
            from ray_apps.rollouts.weight_sync import check_load_report  # brings torch, which this process rarely needs

            report = await self._load(slot, self.weights, self.current.version)
            check_load_report(slot.name, report, self.current, self.rollout.probe_tolerance)


def _describe_failure(error: Exception) -> str:
    """Return the cause alone, without the traceback that Ray adds."""
    cause = getattr(error, "cause", None)
    return "was lost" if isinstance(error, RayActorError) else f"failed ({cause or error})"
