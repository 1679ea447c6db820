"""What the tests of faults share: how to find processes, wait for events, and count what was lost."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil

from ray_apps.training.checkpoints import STATE
from tests.ray.training.cold_start_runs import (
    EPOCHS,
    consumed_rows,
    corpus_ids,
    start_run,
    stop_at_step_5,
    write_data,
)
from tests.ray_cluster import RayHead


def count_lost_rows(run: Path, epochs: int = EPOCHS) -> int:
    """Return how many rows some epoch did not train exactly once."""
    expected = corpus_ids(run)
    lost = 0
    for epoch in range(epochs):
        trained = consumed_rows(run, epoch)
        lost += ((trained - expected) + (expected - trained)).total()
    return lost


def wait_for_end(process: subprocess.Popen[str], code: int, timeout_s: float = 400) -> str:
    """Wait for a command to end with an exit code and without a traceback; return its output on one line."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return " ".join(output.split())


def wait_for(happened: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, f"{what} not within {timeout_s:g} s"
        time.sleep(0.1)


def find_children(title: str, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes below another whose command line begins with `title`."""
    matches = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if (child.cmdline() or [""])[0].startswith(title):
                matches.append(child)
    return matches


def is_rank(process: psutil.Process, head: RayHead) -> bool:
    """Return True if the process is a training worker of the head's cluster."""
    with contextlib.suppress(psutil.Error):
        ancestors = [word for parent in process.parents() for word in parent.cmdline()]
        in_cluster = any(str(head.folder) in word for word in ancestors)
        return in_cluster and (process.cmdline() or [""])[0].startswith("ray::RayTrainWorker")
    return False


def is_driver(process: psutil.Process, run: Path) -> bool:
    """Return True if the process is the driver of a job with this run_dir."""
    words = process.info["cmdline"] or [""]
    return f"run_dir={run}" in words and "python" in words[0]


def stop_run(run: Path) -> Path:
    """Stop a run half-way; return the state of its checkpoint."""
    write_data(run)
    with start_run(run) as process:
        stop_at_step_5(run, process)
        wait_for_end(process, 130)
    [state] = (run / "checkpoints/cold_start").glob(f"step-*/{STATE}")
    assert list(state.rglob("*.pt"))
    return state


def resume_refusal(state: Path) -> str:
    """Return the message with which --resume refuses a damaged checkpoint."""
    with start_run(state.parents[3], resume=True) as process:
        output = wait_for_end(process, 1)
    assert f"{state} cannot be read" in output
    assert "to start over" in output
    return output


@contextlib.contextmanager
def traffic(url: str) -> Iterator[tuple[list[str], list[int]]]:
    """Write and search during a block; yield the acknowledged ids and the search statuses (0: no answer)."""
    written: list[str] = []
    statuses: list[int] = []
    over = threading.Event()

    def write() -> None:
        number = 0
        with httpx.Client(base_url=url, timeout=90) as http:
            while not over.wait(0.02):
                number += 1
                item = {"item_id": f"n{number}", "title": f"new thing {number}"}
                with contextlib.suppress(httpx.TransportError):  # not acknowledged
                    if http.put("/v1/items", json={"items": [item]}).status_code == 200:
                        written.append(item["item_id"])

    def search() -> None:
        with httpx.Client(base_url=url, timeout=90) as http:
            while not over.wait(0.02):
                body = {"query": f"tea pot {len(statuses)}", "reason": "never"}
                try:
                    statuses.append(http.post("/v1/search", json=body).status_code)
                except httpx.TransportError:
                    statuses.append(0)

    threads = [threading.Thread(target=write), threading.Thread(target=search)]
    for thread in threads:
        thread.start()
    try:
        yield written, statuses
    finally:
        over.set()
        for thread in threads:
            thread.join(100)
