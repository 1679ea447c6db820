"""Progress of work in other processes: workers report to one small actor, and the driver draws it."""

import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import ray
from ray.actor import ActorHandle
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ray_apps.cluster import metrics
from ray_apps.cluster.placement import driver_node

POLL_S = 0.5
NAMESPACE = "lrem-progress"  # Ray namespace of the boards' names

console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)


class StageProgress(NamedTuple):
    """How far a stage is; `first` is what was already done at the start of a resumed stage."""

    run: str
    stage: str
    started: float  # seconds since 1970
    first: int
    done: int
    total: int
    note: str


class ProgressBoard:
    """Progress of one stage, as the state of an actor; `lrem status` finds it by its name."""

    def __init__(self, stage: str, run: str) -> None:
        self.labels = {"stage": stage, "run": run}
        self.first, self.done, self.total, self.note, self.started = 0, 0, 0, "", time.time()
        self.reason: str | None = None

    def update(self, done: int, total: int, note: str = "") -> None:
        """Set the progress; `note` is shown beside the bar."""
        self.first = self.first or done
        self.done, self.total, self.note = done, total, note
        metrics.gauge("progress_done", done, **self.labels)
        metrics.gauge("progress_goal", total, **self.labels)

    def read(self) -> StageProgress:
        """Return the progress."""
        return StageProgress(
            self.labels["run"], self.labels["stage"], self.started, self.first, self.done, self.total, self.note
        )

    def fail(self, reason: str) -> None:
        """Record that a worker failed; the first reason is kept."""
        self.reason = self.reason or reason

    def failure(self) -> str | None:
        """Return why a worker failed, or None."""
        return self.reason


@contextmanager
def progress(stage: str, run: str) -> Iterator[ActorHandle]:
    """Yield a ProgressBoard actor and draw it until the block ends; without a terminal, print a line per tenth.

    Args:
        run: the name of the run_dir, which tells it from other runs of the cluster.
    """
    name = f"{run}/{stage}/{uuid.uuid4().hex[:8]}"
    actor = ray.remote(num_cpus=0, name=name, namespace=NAMESPACE, scheduling_strategy=driver_node())(ProgressBoard)
    board = actor.remote(stage, run)
    finished = threading.Event()
    painter = threading.Thread(target=_draw if sys.stdout.isatty() else _print_tenths, args=(stage, board, finished))
    painter.start()
    try:
        yield board
    finally:
        finished.set()
        painter.join()
        ray.kill(board)


def _poll(board: ActorHandle, finished: threading.Event) -> Iterator[StageProgress]:
    while True:
        last = finished.wait(POLL_S)
        try:
            yield StageProgress(*ray.get(board.read.remote(), timeout=30))
        except ray.exceptions.RayError:  # the cluster is going down: the stage itself reports why
            return
        if last:
            return


def _draw(stage: str, board: ActorHandle, finished: threading.Event) -> None:
    columns: list[ProgressColumn] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    columns += [TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(stage, total=None, note="")
        for now in _poll(board, finished):
            bar.update(task, completed=now.done, total=now.total or None, note=now.note)


def _print_tenths(stage: str, board: ActorHandle, finished: threading.Event) -> None:
    started, printed = time.monotonic(), 0
    for now in _poll(board, finished):
        tenth = 10 * now.done // now.total if now.total else 0
        if tenth > printed:
            printed = tenth
            elapsed = time.monotonic() - started
            remaining = ""
            if now.first < now.done < now.total:
                remaining = f", {elapsed * (now.total - now.done) / (now.done - now.first):.0f} s left"
            console.print(f"{stage} {now.done}/{now.total} {elapsed:.0f} s{remaining} {now.note}", highlight=False)
