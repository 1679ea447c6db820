"""Sides of a paired benchmark: processes that make one step each, in turn, when the parent says so.

The parent writes `step` or `memory` to a side's input; the side answers with one line of JSON, so that noise of the
machine meets all sides alike and no two of them ever work at once.
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

PATIENCE_S = 600  # for one answer; a side's first waits for its start


class SideEnded(SystemExit):
    """A side's process ended where it should have answered."""


def start(command: list[str], environment: dict[str, str], errors: Path | None = None) -> subprocess.Popen[str]:
    """Start a side; what it writes to stderr goes to `errors`, or nowhere."""
    stderr: IO[str] | int = subprocess.DEVNULL if errors is None else errors.open("w")
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=stderr
    )


def ask(process: subprocess.Popen[str], what: str) -> dict[str, float]:
    """Send one command; the `value` it answers, and what came with it. Other output of the libraries is passed over.

    Raises:
        SideEnded: the side ended instead.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(what + "\n")
        process.stdin.flush()
    except BrokenPipeError:  # it ended before it was asked; its exit code follows below
        pass
    watch = threading.Timer(PATIENCE_S, process.kill)
    watch.start()
    try:
        for line in process.stdout:
            if line.startswith("answer "):
                return dict(json.loads(line.removeprefix("answer ")))
    finally:
        watch.cancel()
    raise SideEnded(
        f"a side ended with exit code {process.wait()} (-9: no answer within {PATIENCE_S} s): run it alone with --side "
        "to see why"
    )


def answer(value: float, **more: float) -> None:
    sys.__stdout__.write(f"answer {json.dumps({'value': value} | more)}\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def wait_for_step() -> None:
    """Block until the parent wants a step; answers what else it asks."""
    for line in sys.stdin:
        if line.strip() == "step":
            return
        answer(peak_mib())
    raise SystemExit(0)


def in_turn(split: Callable[[float], dict[str, float]] | None = None) -> Any:
    """A callback that makes a transformers Trainer wait for the parent before each step, and answer after it.

    `split` gets the step's seconds and gives the seconds of its parts, to be answered too.
    """
    from transformers import TrainerCallback

    class InTurn(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            wait_for_step()
            self.started = time.perf_counter()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            taken = time.perf_counter() - self.started
            answer(taken, **(split(taken) if split else {}))

    return InTurn()
