"""Calls that come while others are under way go together in the next one: a hop between processes is what costs.

Knows asyncio; does not know what is called. Nobody waits for company: an idle lane takes what there is.
"""

import asyncio
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
    """

    def __init__(self, call: Callable[[list[A]], Awaitable[list[B]]], lanes: int) -> None:
        self._call, self._lanes = call, lanes
        self._waiting: list[tuple[A, asyncio.Future[B]]] = []
        self._flights: set[asyncio.Task[None]] = set()

    async def __call__(self, one: A) -> B:
        """The result of one argument; whatever the call raises, all that went together raise."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((one, future))
        self._start()
        return await future

    def _start(self) -> None:
        while self._waiting and len(self._flights) < self._lanes:
            together, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            flight = asyncio.get_running_loop().create_task(self._fly(together))
            self._flights.add(flight)
            flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        self._start()

    async def _fly(self, together: list[tuple[A, asyncio.Future[B]]]) -> None:
        wanted = [(one, future) for one, future in together if not future.done()]  # who left is left out
        if not wanted:
            return
        try:
            results = await self._call([one for one, _ in wanted])
        except BaseException as error:
            for _, future in wanted:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(wanted, results, strict=True):
            if not future.done():
                future.set_result(result)
