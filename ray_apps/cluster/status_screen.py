"""The tables of `lrem status`."""

import time
from dataclasses import astuple
from datetime import timedelta

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ray_apps.cluster.progress import StageProgress
from ray_apps.cluster.status import ActorStatus, ClusterStatus, JobStatus, MachineStatus

GIB = 2**30


def render(status: ClusterStatus) -> Group:
    """Return the screen: one table each for machines, jobs, stages, actors and the service."""
    now = time.time()
    machines = [_machine_row(machine) for machine in status.machines]
    jobs = [_job_row(job, now) for job in status.jobs]
    stages = [_stage_row(stage, now) for stage in status.stages]
    actors = [_actor_row(actor) for actor in status.actors]
    service = [list(astuple(deployment)) for deployment in status.service]
    return Group(
        _table("Machines", ("address", "node", "kind", "state", "CPU", "GPU", "objects, GiB"), machines),
        _table("Jobs", ("job", "since", "command"), jobs),
        _table("Stages", ("run", "stage", "done", "left", ""), stages),
        _table("Actors", ("", "actor", "address", "node", "state"), actors),
        _table("Service", ("application", "part", "status", "replicas"), service),
    )


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> Table | Text:
    if not rows:
        return Text(f"{title}: none")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _machine_row(machine: MachineStatus) -> list[str]:
    kind = f"{'head ' if machine.head else ''}{machine.kind}".strip()
    state = "up" if machine.alive else "gone"
    return [
        *(machine.address, machine.id, kind, state),
        *(_usage(machine, name) for name in ("CPU", "GPU")),
        _usage(machine, "object_store_memory", GIB, ".1f"),
    ]


def _usage(machine: MachineStatus, name: str, unit: float = 1, digits: str = "g") -> str:
    total = machine.total.get(name, 0.0)
    return f"{machine.used.get(name, 0.0) / unit:{digits}} of {total / unit:{digits}}" if total else "-"


def _job_row(job: JobStatus, now: float) -> list[str]:
    return [job.job, _duration(now - job.begun), job.entrypoint]


def _stage_row(stage: StageProgress, now: float) -> list[str]:
    left = "-"
    if stage.first < stage.done < stage.total:
        left = _duration((now - stage.started) * (stage.total - stage.done) / (stage.done - stage.first))
    return [stage.run, stage.stage, f"{stage.done}/{stage.total}", left, stage.note]


def _actor_row(actor: ActorStatus) -> list[str]:
    return [str(actor.count), actor.actor, actor.address, actor.id, actor.state.lower()]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
