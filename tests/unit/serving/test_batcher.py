"""Calls that go together: each gets its own result, who leaves is left out, nobody waits for ever."""

import asyncio
from typing import Any

import pytest

from ray_apps.serving.batcher import Batcher


def test_what_comes_meanwhile_goes_together() -> None:
    seen: list[list[int]] = []

    async def double(numbers: list[int]) -> list[int]:
        seen.append(numbers)
        await asyncio.sleep(0.05)
        return [2 * number for number in numbers]

    async def ask() -> list[int]:
        batcher = Batcher(double, lanes=1, timeout_s=5)
        first = asyncio.ensure_future(batcher(0))
        await asyncio.sleep(0.01)
        rest = asyncio.gather(*map(batcher, range(1, 100)))
        return [await first, *await rest]

    assert asyncio.run(ask()) == [2 * number for number in range(100)]
    assert [len(numbers) for numbers in seen] == [1, 64, 35]


def test_who_leaves_is_left_out() -> None:
    seen: list[list[str]] = []

    async def echo(words: list[str]) -> list[str]:
        seen.append(words)
        await asyncio.sleep(0.05)
        return words

    async def ask() -> str:
        batcher = Batcher(echo, lanes=1, timeout_s=5)
        first = asyncio.ensure_future(batcher("first"))
        await asyncio.sleep(0.01)
        leaves, stays = asyncio.ensure_future(batcher("leaves")), asyncio.ensure_future(batcher("stays"))
        await asyncio.sleep(0.01)
        leaves.cancel()
        first.cancel()  # its call goes on: it may not be its alone
        return await stays

    assert asyncio.run(ask()) == "stays"
    assert seen == [["first"], ["stays"]]


@pytest.mark.parametrize("failure", [ValueError("no"), None])
def test_a_failure_or_a_hang_is_told_to_all(failure: Exception | None) -> None:
    async def fail(numbers: list[int]) -> list[int]:
        if failure is not None:
            raise failure
        await asyncio.sleep(60)
        return numbers

    async def ask() -> list[Any]:
        batcher = Batcher(fail, lanes=2, timeout_s=0.1)
        return await asyncio.gather(*(batcher(i) for i in range(5)), return_exceptions=True)

    kinds = {type(found) for found in asyncio.run(ask())}
    assert kinds == {ValueError if failure is not None else TimeoutError}
