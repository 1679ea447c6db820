"""Progress of work that runs in other processes: workers report to one small actor, the driver draws it."""

import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ray_apps.cluster import metrics
from ray_apps.cluster.placement import driver_node

POLL_S = 0.5
NAMESPACE = "lrem-progress"  # of Ray's, where boards have their names


class StageProgress(NamedTuple):
    """How far a stage is, and since when (seconds since 1970)."""

    run: str
    stage: str
    begun: float
    first: int  # done when it was begun, if it is resumed
    done: int
    total: int
    note: str


console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)


class ProgressBoard:
    """Holds how far the work is; an actor's state. `lrem status` finds it by its name."""

    def __init__(self, title: str, run: str) -> None:
        self.labels = {"stage": title, "run": run}
        self.first, self.done, self.total, self.note, self.begun = 0, 0, 0, "", time.time()
        self.reason: str | None = None

    def update(self, done: int, total: int, note: str = "") -> None:
        """Set the position; `note` is shown beside the bar."""
        self.first = self.first or done
        self.done, self.total, self.note = done, total, note
        metrics.gauge("progress_done", done, **self.labels)
        metrics.gauge("progress_goal", total, **self.labels)

    def describe(self) -> StageProgress:
        """All of it."""
        return StageProgress(
            self.labels["run"], self.labels["stage"], self.begun, self.first, self.done, self.total, self.note
        )

    def read(self) -> tuple[int, int, str]:
        """(done, total, note)."""
        return self.done, self.total, self.note

    def fail(self, reason: str) -> None:
        """A worker gave up; the first reason is kept."""
        self.reason = self.reason or reason

    def failure(self) -> str | None:
        """Why a worker gave up, or None."""
        return self.reason


@contextmanager
def progress(title: str, run: str) -> Iterator[ActorHandle]:
    """Yield a ProgressBoard actor and draw it until the block ends; without a terminal, a line each tenth.

    Args:
        run: the name of the run_dir, to tell it from others of the cluster.
    """
    name = f"{run}/{title}/{uuid.uuid4().hex[:8]}"
    actor = ray.remote(num_cpus=0, name=name, namespace=NAMESPACE, scheduling_strategy=driver_node())(ProgressBoard)
    board = actor.remote(title, run)
    finished = threading.Event()
    painter = threading.Thread(target=_draw if sys.stdout.isatty() else _lines, args=(title, board, finished))
    painter.start()
    try:
        yield board
    finally:
        finished.set()
        painter.join()
        ray.kill(board)


def _poll(board: ActorHandle, finished: threading.Event) -> Iterator[tuple[int, int, str]]:
    while True:
        last = finished.wait(POLL_S)
        try:
            yield ray.get(board.read.remote(), timeout=30)
        except ray.exceptions.RayError:  # the cluster is going down: the stage itself says why
            return
        if last:
            return


def _draw(title: str, board: ActorHandle, finished: threading.Event) -> None:
    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, note="")
        for done, total, note in _poll(board, finished):
            bar.update(task, completed=done, total=total or None, note=note)


def _lines(title: str, board: ActorHandle, finished: threading.Event) -> None:
    started, printed, first = time.monotonic(), 0, 0
    for done, total, note in _poll(board, finished):
        first = first or done  # a resumed stage does not begin at 0
        tenth = 10 * done // total if total else 0
        if tenth > printed:
            printed = tenth
            took = time.monotonic() - started
            left = f", {took * (total - done) / (done - first):.0f} s left" if first < done < total else ""
            console.print(f"{title} {done}/{total} {took:.0f} s{left} {note}", highlight=False)
