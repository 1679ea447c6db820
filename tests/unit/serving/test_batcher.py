"""Batched calls: every caller gets its own result, callers who left are skipped, no caller waits for ever."""

import asyncio
from typing import Any

import pytest

from ray_apps.serving.batcher import Batcher


def test_calls_that_arrive_during_a_call_share_the_next_one() -> None:
    batches: list[list[int]] = []

    async def double(numbers: list[int]) -> list[int]:
        batches.append(numbers)
        await asyncio.sleep(0.05)
        return [2 * number for number in numbers]

    async def run() -> list[int]:
        batcher = Batcher(double, lanes=1, timeout_s=5)
        first = asyncio.ensure_future(batcher(0))
        await asyncio.sleep(0.01)
        rest = asyncio.gather(*map(batcher, range(1, 100)))
        return [await first, *await rest]

    assert asyncio.run(run()) == [2 * number for number in range(100)]
    assert [len(numbers) for numbers in batches] == [1, 64, 35]


def test_a_cancelled_caller_is_skipped() -> None:
    batches: list[list[str]] = []

    async def echo(words: list[str]) -> list[str]:
        batches.append(words)
        await asyncio.sleep(0.05)
        return words

    async def run() -> str:
        batcher = Batcher(echo, lanes=1, timeout_s=5)
        first = asyncio.ensure_future(batcher("first"))
        await asyncio.sleep(0.01)
        leaves, stays = asyncio.ensure_future(batcher("leaves")), asyncio.ensure_future(batcher("stays"))
        await asyncio.sleep(0.01)
        leaves.cancel()
        first.cancel()  # its call continues: others may share it
        return await stays

    assert asyncio.run(run()) == "stays"
    assert batches == [["first"], ["stays"]]


@pytest.mark.parametrize("failure", [ValueError("no"), None])
def test_a_failure_or_a_timeout_reaches_every_caller(failure: Exception | None) -> None:
    async def fail(numbers: list[int]) -> list[int]:
        if failure is not None:
            raise failure
        await asyncio.sleep(60)
        return numbers

    async def run() -> list[Any]:
        batcher = Batcher(fail, lanes=2, timeout_s=0.1)
        return await asyncio.gather(*(batcher(i) for i in range(5)), return_exceptions=True)

    error_types = {type(error) for error in asyncio.run(run())}
    assert error_types == {ValueError if failure is not None else TimeoutError}
