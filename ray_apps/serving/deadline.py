"""The clock of one request: one deadline for all its phases, and what each took, for the answer and for /metrics.

Knows asyncio; does not know what a phase does.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from ray_apps.serving.errors import ServiceError
from ray_apps.serving.metrics import Measures

PHASES = ("route", "reason", "embed", "search", "total")
T = TypeVar("T")


class Phases:
    """The clock of one request: one deadline for all its phases, and the milliseconds each took."""

    def __init__(self, timeout_s: float, measures: Measures) -> None:
        self.timeout_s, self.start, self.measures = timeout_s, time.perf_counter(), measures
        self.ms = dict.fromkeys(PHASES, 0.0)
        self.degraded = False
        self._apart = 0.0  # seconds of the phase under way that count as another's

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.timeout_s - (time.perf_counter() - self.start)

    async def run(self, name: str, work: Awaitable[T], at_most_s: float = float("inf")) -> T:
        """Await one phase.

        Raises:
            TimeoutError: it took longer than `at_most_s`.
            ServiceError: 504, naming the phase, once the request's time is up.
        """
        begun, left = time.perf_counter(), self.left()
        try:
            async with asyncio.timeout(min(left, at_most_s)):
                return await work
        except TimeoutError as error:
            if at_most_s < left:
                raise
            message = f"waited {self.timeout_s:g} s, in the end for '{name}': send fewer queries or try later"
            raise ServiceError(504, message, f"timeout_{name}") from error
        finally:
            now = time.perf_counter()
            self._count(name, now - begun - self._apart)
            self._apart = 0.0
            self.ms["total"] = round(1000 * (now - self.start), 2)

    def part(self, name: str, seconds: float) -> None:
        """Count so many seconds of the phase under way as another's."""
        self._apart += seconds
        self._count(name, seconds)

    def _count(self, name: str, seconds: float) -> None:
        self.ms[name] = round(self.ms.get(name, 0.0) + 1000 * seconds, 2)
        self.measures.phase(name, seconds)
