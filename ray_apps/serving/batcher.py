"""Calls that come while others are under way go together in the next one: a hop between processes is what costs.

Knows asyncio; does not know what is called. Nobody waits for company: an idle lane takes what there is.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")
MOST = 64  # that go together


class Batcher(Generic[A, B]):
    """One function over many arguments, called as if it took one.

    Args:
        call: arguments → their results, in order.
        lanes: calls under way at once.
        timeout_s: of a call.
    """

    def __init__(self, call: Callable[[list[A]], Awaitable[list[B]]], lanes: int, timeout_s: float) -> None:
        self._call, self._lanes, self._timeout_s = call, lanes, timeout_s
        self._waiting: list[tuple[A, asyncio.Future[B]]] = []
        self._flights: set[asyncio.Task[None]] = set()

    async def __call__(self, one: A) -> B:
        """The result of one argument; whatever the call raises, all that went together raise."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, future))
        self._start()
        try:
            return await future
        finally:
            self._waiting = [waiting for waiting in self._waiting if waiting[1] is not future]

    def _start(self) -> None:
        while self._waiting and len(self._flights) < self._lanes:
            together, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            # in the context of the first caller Serve would cancel the call for all when that one leaves
            alone = contextvars.Context()
            flight = asyncio.get_running_loop().create_task(self._fly(together), context=alone)
            self._flights.add(flight)
            flight.add_done_callback(self._landed, context=alone)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        self._start()

    async def _fly(self, together: list[tuple[A, asyncio.Future[B]]]) -> None:
        wanted = [(one, future) for one, future in together if not future.done()]  # who left is left out
        if not wanted:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                results = await self._call([one for one, _ in wanted])
        except BaseException as error:
            for _, future in wanted:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(wanted, results, strict=True):
            if not future.done():
                future.set_result(result)
