"""Paired benchmarks: each side is a process that makes one step at a time, in turn, when the parent asks for it.

The parent writes `step` or `memory` to a side's stdin, and the side answers with one line of JSON. No two sides ever
work at the same time, and machine noise affects all of them alike.
"""

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

TIMEOUT_S = 600  # for one answer; the first includes the start
# arguments of a transformers trainer that only makes steps, on a CPU
STEPS_ALONE: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
}


class SideEnded(SystemExit):
    """A side's process ended instead of answering."""


def start(command: list[str], environment: dict[str, str], errors: Path | None = None) -> subprocess.Popen[str]:
    """Start a side; its stderr goes to the file `errors`, or is discarded."""
    stderr: IO[str] | int = subprocess.DEVNULL if errors is None else errors.open("w")
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=stderr
    )


def ask(process: subprocess.Popen[str], command: str) -> dict[str, float]:
    """Send a command and return the answer: `value`, and further named values. Other output is ignored.

    Raises:
        SideEnded: the side ended instead.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(command + "\n")
        process.stdin.flush()
    except BrokenPipeError:  # it has ended; its exit code is reported below
        pass
    timer = threading.Timer(TIMEOUT_S, process.kill)
    timer.start()
    try:
        for line in process.stdout:
            if line.startswith("answer "):
                return dict(json.loads(line.removeprefix("answer ")))
    finally:
        timer.cancel()
    raise SideEnded(
        f"a side ended with exit code {process.wait()} (-9: no answer within {TIMEOUT_S} s): run it alone with --side "
        "to see why"
    )


def answer(value: float, **more: float) -> None:
    """Send the parent a value, and further named values."""
    sys.__stdout__.write(f"answer {json.dumps({'value': value} | more)}\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def peak_mib() -> float:
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def wait_for_step() -> None:
    """Block until the parent asks for a step; answer its requests for memory meanwhile."""
    for line in sys.stdin:
        if line.strip() == "step":
            return
        answer(peak_mib())
    raise SystemExit(0)


def in_turn(split: Callable[[float], dict[str, float]] | None = None) -> Any:
    """Return a callback with which a transformers Trainer waits for the parent before each step and answers after it.

    Args:
        split: takes the seconds of the step and returns the seconds of its phases, which are answered too.
    """
    from transformers import TrainerCallback

    class InTurn(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            wait_for_step()
            self.started = time.perf_counter()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            seconds = time.perf_counter() - self.started
            answer(seconds, **(split(seconds) if split else {}))

    return InTurn()
