"""One deadline for all phases of a request, and time left to answer without thinking."""

import asyncio

import pytest

from lrem.config import load_config
from lrem.errors import ConfigError
from ray_apps.serving.deadline import Deadline
from ray_apps.serving.errors import ServiceError
from ray_apps.serving.metrics import ServingMetrics


def test_the_error_names_the_phase_that_exceeds_the_deadline() -> None:
    async def run_late() -> ServiceError:
        deadline = Deadline(60.0, ServingMetrics())
        await deadline.run("reason", asyncio.sleep(0))
        deadline.start -= 61.0  # as if the first phase had taken that long
        with pytest.raises(ServiceError, match="'search'") as caught:
            await deadline.run("search", asyncio.sleep(5))
        return caught.value

    assert asyncio.run(run_late()).status == 504


def test_a_phase_limit_does_not_end_the_request() -> None:
    async def run_limited() -> None:
        with pytest.raises(TimeoutError):
            await Deadline(60.0, ServingMetrics()).run("reason", asyncio.sleep(5), limit_s=0.01)

    asyncio.run(run_limited())


def test_attributed_time_is_not_counted_twice() -> None:
    async def run() -> dict[str, float]:
        deadline = Deadline(60.0, ServingMetrics())

        async def work() -> None:
            await asyncio.sleep(0.05)
            deadline.attribute("route", 0.04)

        await deadline.run("reason", work())
        return deadline.timings_ms

    timings = asyncio.run(run())
    assert timings["route"] == 40
    assert timings["reason"] >= 9
    assert timings["route"] + timings["reason"] <= timings["total"] + 0.02  # each is rounded to 0.01 ms


def test_timeouts_leave_time_to_answer_without_thinking() -> None:
    with pytest.raises(ConfigError, match=r"reason_timeout_s \(10\).*search_timeout_s \(5\).*timeout_s \(15\)"):
        load_config(None, ["serve.timeout_s=15"])
