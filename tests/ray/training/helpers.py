"""Training runs as processes: start `lrem`, read its logs, find its workers, wait for what they do."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

LREM = [sys.executable, "-m", "ray_apps.cli.main"]


def start_lrem(*words: str, resume: bool = False) -> subprocess.Popen[str]:
    """Start a command in a process of its own, with what it prints in one pipe."""
    command = [*LREM, *words, *["--resume"] * resume]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], code: int = 0, seconds: float = 400) -> str:
    """Wait for a command that has to end with `code`; return what it printed, in one line."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, output
    return " ".join(output.split())


def read_log(run: Path, name: str) -> list[dict[str, Any]]:
    """Return the lines of run_dir/logs/NAME.jsonl."""
    return [json.loads(line) for line in (run / f"logs/{name}.jsonl").read_text().splitlines()]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], what: str, seconds: float = 240) -> None:
    """Wait for a condition; fail if the process ends before it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:.0f} s"
        time.sleep(0.002)


def train_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes of a command's training workers."""
    workers = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended, or was killed and is not yet reaped
            if (child.cmdline() or [""])[0].startswith("ray::RayTrainWorker"):
                workers.append(child)
    return workers


def wait_for_workers(process: subprocess.Popen[str], previous: Sequence[psutil.Process] = ()) -> list[psutil.Process]:
    """Return both ranks' processes before they train: a whole run takes less than a second, as long as the search.

    Args:
        previous: workers of an earlier attempt.
    """
    workers: list[psutil.Process] = []

    def both_are_up() -> bool:
        workers[:] = [worker for worker in train_workers(process) if worker not in previous]
        if len(workers) < 2:
            time.sleep(0.1)  # listing all processes costs more than a test can spare
        return len(workers) == 2

    wait_until(both_are_up, process, "two training workers")
    return workers
