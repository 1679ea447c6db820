"""Request batcher: calls that arrive while others are in progress share the next one, to save hops between processes.

No call waits for company: a free lane takes whatever is queued.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")
MAX_BATCH = 64


class Batcher(Generic[A, B]):
    """A function over a list of arguments, called as if it took one argument.

    Args:
        function: arguments → their results, in order.
        lanes: calls in progress at once.
        timeout_s: timeout of one call.
    """

    def __init__(self, function: Callable[[list[A]], Awaitable[list[B]]], lanes: int, timeout_s: float) -> None:
        self._function, self._lanes, self._timeout_s = function, lanes, timeout_s
        self._queue: list[tuple[A, asyncio.Future[B]]] = []
        self._in_progress: set[asyncio.Task[None]] = set()

    async def __call__(self, argument: A) -> B:
        """Return the result of one argument; an error of the call is raised to every caller in its batch."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._queue.append((argument, future))
        self._start()
        try:
            return await future
        finally:
            self._queue = [entry for entry in self._queue if entry[1] is not future]

    def _start(self) -> None:
        while self._queue and len(self._in_progress) < self._lanes:
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
            # in the first caller's context, Serve would cancel the call for the whole batch when that caller leaves
            empty = contextvars.Context()
            task = asyncio.get_running_loop().create_task(self._run(batch), context=empty)
            self._in_progress.add(task)
            task.add_done_callback(self._finish, context=empty)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._in_progress.discard(task)
        self._start()

    async def _run(self, batch: list[tuple[A, asyncio.Future[B]]]) -> None:
        batch = [(argument, future) for argument, future in batch if not future.done()]  # without callers who left
        if not batch:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                results = await self._function([argument for argument, _ in batch])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
