"""Wait until an application of the service runs and answers."""

import re
import time

import httpx
from ray import serve
from ray.serve.schema import ApplicationStatusOverview

POLL_S = 0.2


def wait_until_running(name: str, deadline: float) -> None:
    """Return once every deployment of an application runs; `deadline` is in time.monotonic().

    Raises:
        ConnectionError: a deployment cannot start; the message holds its error.
        TimeoutError: the deadline has passed; the message names the deployments that do not run.
    """
    while (state := serve.status().applications[name]).status != "RUNNING":
        if state.status == "DEPLOY_FAILED":
            raise ConnectionError(f"the serving application did not start: {_cause(state)}")
        if time.monotonic() > deadline:
            waiting = [part for part, status in state.deployments.items() if status.status != "HEALTHY"]
            missing = " and ".join(waiting) or name
            raise TimeoutError(f"waited too long for {missing} (ray.start_timeout_s): look at `ray status`")
        time.sleep(POLL_S)


def wait_until_ready(address: str, deadline: float) -> None:
    """Return once `/readyz` answers 200. Raises TimeoutError after the deadline, in time.monotonic()."""
    while not _is_ready(address):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"waited too long for an answer from {address}/readyz (ray.start_timeout_s): see its log"
            )
        time.sleep(POLL_S)


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _cause(state: ApplicationStatusOverview) -> str:
    """Return the error of the first deployment that failed: the last exception that its traceback names."""
    for name, status in state.deployments.items():
        if status.status == "DEPLOY_FAILED":
            errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): .*", status.message, re.MULTILINE)
            return f"{name}: {errors[-1] if errors else status.message}"
    return str(state.message)
