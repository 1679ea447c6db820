"""What runs where, on one screen: machines, jobs, stages under way, actors by machine, the service. Changes nothing."""

import time
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

import ray
import ray._private.state as state  # no public function gives actors and jobs where no dashboard runs
from ray._private.worker import global_worker
from ray.exceptions import RayError
from ray.serve.context import _get_global_client
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lrem.config import Config
from ray_apps.cluster.progress import NAMESPACE, StageProgress
from ray_apps.cluster.session import ray_address

WAIT_S = 10.0  # for a stage to say how far it is
OTHERS = ("ServeController", "ProxyActor", "JobSupervisor", "_StatsActor", "AutoscalingCoordinator")  # Ray's own


class Status(NamedTuple):
    """All of it, as data; `show` draws it."""

    machines: list[dict[str, Any]]
    jobs: list[dict[str, Any]]
    stages: list[StageProgress]
    actors: list[dict[str, Any]]
    service: list[dict[str, Any]]


def status(config: Config) -> Status:
    """Look at the cluster of `ray.address`, of RAY_ADDRESS, or the one that runs on this machine.

    Raises:
        ConfigError: the address is that of the jobs API.
        ConnectionError: there is none, or it does not answer; the message says what to do.
    """
    address = ray_address(config, "auto")
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at '{address}' ({_first_line(error)}): start one with `ray start --head`; from "
            "elsewhere run `ray job submit -- lrem status`; export RAY_AUTH_MODE=token if it asks for a token"
        ) from error
    try:
        return Status(_machines(), _jobs(), _stages(), _actors(), _service())
    except (RayError, TimeoutError) as error:
        raise ConnectionError(f"the cluster at '{address}' does not answer in full: {_first_line(error)}") from error
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _machines() -> list[dict[str, Any]]:
    free = state.available_resources_per_node()
    known = global_worker.gcs_client.get_all_node_info(timeout=WAIT_S)  # the public list leaves the kind out
    kinds = {node.hex(): info.node_type_name for node, info in known.items()}
    found = []
    for node in ray.nodes():
        total, left = node["Resources"], free.get(node["NodeID"], {})
        used = {name: total[name] - left.get(name, 0.0) for name in total if not name.startswith("node:")}
        head = "node:__internal_head__" in total
        found.append(
            {
                "address": node["NodeManagerAddress"],
                "id": node["NodeID"][:8],
                "kind": kinds.get(node["NodeID"], ""),
                "head": head,
            }
            | {"alive": node["Alive"], "total": total, "used": used}
        )
    return sorted(found, key=lambda machine: (not machine["alive"], not machine["head"], machine["address"]))


def _jobs() -> list[dict[str, Any]]:
    mine = ray.get_runtime_context().get_job_id()
    return [
        {"job": job["JobID"], "entrypoint": job["Entrypoint"], "begun": job["StartTime"] / 1000}
        for job in state.jobs()
        if not job["IsDead"] and job["JobID"] != mine and not job["Entrypoint"].startswith("ray::")  # its own
    ]


def _stages() -> list[StageProgress]:
    boards = [found for found in ray.util.list_named_actors(all_namespaces=True) if found["namespace"] == NAMESPACE]
    asked = []
    for found in boards:
        try:
            asked.append(ray.get_actor(found["name"], NAMESPACE).describe.remote())
        except ValueError:  # it has ended meanwhile
            continue
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=WAIT_S) if asked else ([], [])
    return sorted(StageProgress(*standing) for standing in _gathered(ready))


def _gathered(references: list[Any]) -> Iterable[Any]:
    for reference in references:
        try:
            yield ray.get(reference, timeout=WAIT_S)
        except RayError:  # as above
            continue


def _actors() -> list[dict[str, Any]]:
    """Living actors of each class and machine."""
    counted = Counter(
        (found["ActorClassName"], found["Address"]["IPAddress"], found["Address"]["NodeID"][:8], found["State"])
        for found in state.actors().values()
        if found["State"] != "DEAD" and found["ActorClassName"].rpartition(".")[2] not in OTHERS
    )
    return [
        {"actor": name, "address": address or "nowhere yet", "id": node, "state": now, "count": count}
        for (name, address, node, now), count in sorted(counted.items())
    ]


def _service() -> list[dict[str, Any]]:
    found = []
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return []
    # as serve.status(), which has no limit
    details = ray.get(client._controller.get_serve_instance_details.remote(), timeout=WAIT_S)
    for name, application in sorted(details["applications"].items()):
        for part, deployment in sorted(application["deployments"].items()):
            counted = Counter(_plain(replica["state"]) for replica in deployment["replicas"])
            replicas = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items()))
            status = _plain(deployment["status"])
            found.append({"application": name, "part": part, "status": status, "replicas": replicas})
    return found


def _plain(state: Any) -> str:
    return str(getattr(state, "value", state))


def show(found: Status) -> Group:
    """The screen."""
    now = time.time()
    machines = [
        [
            machine["address"],
            machine["id"],
            f"{'head ' if machine['head'] else ''}{machine['kind']}".strip(),
            "up" if machine["alive"] else "gone",
            *(_of(machine, name) for name in ("CPU", "GPU")),
            _gib(machine, "object_store_memory"),
        ]
        for machine in found.machines
    ]
    stages = [
        [stage.run, stage.stage, f"{stage.done}/{stage.total}", _left(stage, now), stage.note] for stage in found.stages
    ]
    jobs = [[job["job"], _span(now - job["begun"]), job["entrypoint"]] for job in found.jobs]
    actors = [[str(a["count"]), a["actor"], a["address"], a["id"], a["state"].lower()] for a in found.actors]
    return Group(
        _table("Machines", ("address", "node", "kind", "state", "CPU", "GPU", "objects, GiB"), machines),
        _table("Jobs", ("job", "since", "command"), jobs),
        _table("Stages", ("run", "stage", "done", "left", ""), stages),
        _table("Actors", ("", "actor", "address", "node", "state"), actors),
        _table(
            "Service", ("application", "part", "status", "replicas"), [list(part.values()) for part in found.service]
        ),
    )


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]]) -> Table | Text:
    if not rows:
        return Text(f"{title}: none")
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def _of(machine: dict[str, Any], name: str) -> str:
    total = machine["total"].get(name, 0.0)
    return f"{machine['used'].get(name, 0.0):g} of {total:g}" if total else "-"


def _gib(machine: dict[str, Any], name: str) -> str:
    total = machine["total"].get(name, 0.0)
    return f"{machine['used'].get(name, 0.0) / 2**30:.1f} of {total / 2**30:.1f}" if total else "-"


def _left(stage: StageProgress, now: float) -> str:
    if not stage.first < stage.done < stage.total:
        return "-"
    return _span((now - stage.begun) * (stage.total - stage.done) / (stage.done - stage.first))


def _span(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))
