"""The deadline of one request: one time limit for all its phases, and the time that each phase took."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from ray_apps.serving.errors import ServiceError
from ray_apps.serving.metrics import ServingMetrics

PHASES = ("route", "reason", "embed", "search", "total")
T = TypeVar("T")


class Deadline:
    """One time limit for all phases of a request; `timings_ms` holds the milliseconds that each phase took."""

    def __init__(self, timeout_s: float, metrics: ServingMetrics) -> None:
        self.timeout_s, self.start, self.metrics = timeout_s, time.perf_counter(), metrics
        self.timings_ms = dict.fromkeys(PHASES, 0.0)
        self._attributed_s = 0.0  # of the running phase, counted as another phase's time

    def remaining_s(self) -> float:
        """Return the seconds until the deadline."""
        return self.timeout_s - (time.perf_counter() - self.start)

    async def run(self, phase: str, work: Awaitable[T], limit_s: float = float("inf")) -> T:
        """Await the work of one phase.

        Raises:
            TimeoutError: the phase took longer than `limit_s`.
            ServiceError: 504 that names the phase, once the request's time is up.
        """
        phase_start, remaining_s = time.perf_counter(), self.remaining_s()
        try:
            async with asyncio.timeout(min(remaining_s, limit_s)):
                return await work
        except TimeoutError as error:
            if limit_s < remaining_s:
                raise
            message = f"timed out after {self.timeout_s:g} s in phase '{phase}': send fewer queries or try later"
            raise ServiceError(504, message, f"timeout_{phase}") from error
        finally:
            now = time.perf_counter()
            self._add(phase, now - phase_start - self._attributed_s)
            self._attributed_s = 0.0
            self.timings_ms["total"] = round(1000 * (now - self.start), 2)

    def attribute(self, phase: str, seconds: float) -> None:
        """Count `seconds` of the running phase as time of another one."""
        self._attributed_s += seconds
        self._add(phase, seconds)

    def _add(self, phase: str, seconds: float) -> None:
        self.timings_ms[phase] = round(self.timings_ms.get(phase, 0.0) + 1000 * seconds, 2)
        self.metrics.observe_phase(phase, seconds)
