"""What runs where in a Ray cluster: machines, jobs, stages, actors, the service. Read only."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.state as state  # without a dashboard no public function lists actors and jobs
from ray._private.worker import global_worker
from ray.exceptions import RayError
from ray.serve.context import _get_global_client

from lrem.config import Config
from ray_apps.cluster.progress import NAMESPACE, StageProgress
from ray_apps.cluster.session import ray_address

TIMEOUT_S = 10.0
RAY_ACTORS = ("ServeController", "ProxyActor", "JobSupervisor", "_StatsActor", "AutoscalingCoordinator")  # not ours


@dataclass(frozen=True)
class MachineStatus:
    """One node; `total` and `used` are resources by name, `kind` is its node type."""

    address: str
    id: str
    kind: str
    head: bool
    alive: bool
    total: dict[str, float]
    used: dict[str, float]


@dataclass(frozen=True)
class JobStatus:
    """One running job; `begun` is in seconds since 1970."""

    job: str
    entrypoint: str
    begun: float


@dataclass(frozen=True)
class ActorStatus:
    """The living actors of one class on one machine that are in the same state."""

    actor: str
    address: str
    id: str
    state: str
    count: int


@dataclass(frozen=True)
class DeploymentStatus:
    """One deployment of the service, with its replicas counted by state."""

    application: str
    part: str
    status: str
    replicas: str


@dataclass(frozen=True)
class ClusterStatus:
    """Everything that `lrem status` shows."""

    machines: list[MachineStatus]
    jobs: list[JobStatus]
    stages: list[StageProgress]
    actors: list[ActorStatus]
    service: list[DeploymentStatus]


def read_status(config: Config) -> ClusterStatus:
    """Read the status of the cluster at `ray.address`, at RAY_ADDRESS, or on this machine.

    Raises:
        ConfigError: the address is that of the jobs API.
        ConnectionError: no cluster answers there; the message says what to do.
    """
    address = ray_address(config, "auto")
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at '{address}' ({_first_line(error)}): start one with `ray start --head`; from "
            "another machine run `ray job submit -- lrem status`; if the cluster requires a token, export "
            "RAY_AUTH_MODE=token"
        ) from error
    try:
        return ClusterStatus(_machines(), _jobs(), _stages(), _actors(), _deployments())
    except (RayError, TimeoutError) as error:
        raise ConnectionError(
            f"the cluster at '{address}' stopped answering ({_first_line(error)}): run `lrem status` again"
        ) from error
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _machines() -> list[MachineStatus]:
    available = state.available_resources_per_node()
    infos = global_worker.gcs_client.get_all_node_info(timeout=TIMEOUT_S)  # ray.nodes() has no node types
    kinds = {node.hex(): info.node_type_name for node, info in infos.items()}
    machines = []
    for node in ray.nodes():
        total, free = node["Resources"], available.get(node["NodeID"], {})
        used = {name: total[name] - free.get(name, 0.0) for name in total if not name.startswith("node:")}
        identity = (node["NodeManagerAddress"], node["NodeID"][:8], kinds.get(node["NodeID"], ""))
        machines.append(MachineStatus(*identity, "node:__internal_head__" in total, node["Alive"], total, used))
    return sorted(machines, key=lambda machine: (not machine.alive, not machine.head, machine.address))


def _jobs() -> list[JobStatus]:
    this_job = ray.get_runtime_context().get_job_id()
    return [
        JobStatus(job["JobID"], job["Entrypoint"], job["StartTime"] / 1000)
        for job in state.jobs()
        if not job["IsDead"] and job["JobID"] != this_job and not job["Entrypoint"].startswith("ray::")  # Ray's own
    ]


def _stages() -> list[StageProgress]:
    actors = ray.util.list_named_actors(all_namespaces=True)
    references = []
    for name in [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]:
        try:
            references.append(ray.get_actor(name, NAMESPACE).read.remote())
        except ValueError:  # its stage has ended since
            continue
    ready, _ = ray.wait(references, num_returns=len(references), timeout=TIMEOUT_S) if references else ([], [])
    return sorted(StageProgress(*stage) for stage in _get_living(ready))


def _get_living(references: list[Any]) -> Iterable[Any]:
    for reference in references:
        try:
            yield ray.get(reference, timeout=TIMEOUT_S)
        except RayError:  # its stage has ended since
            continue


def _actors() -> list[ActorStatus]:
    counts = Counter(
        (actor["ActorClassName"], actor["Address"]["IPAddress"], actor["Address"]["NodeID"][:8], actor["State"])
        for actor in state.actors().values()
        if actor["State"] != "DEAD" and actor["ActorClassName"].rpartition(".")[2] not in RAY_ACTORS
    )
    return [
        ActorStatus(name, address or "nowhere yet", node, now, count)
        for (name, address, node, now), count in sorted(counts.items())
    ]


def _deployments() -> list[DeploymentStatus]:
    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return []
    # what serve.status() calls, which has no timeout
    details = ray.get(client._controller.get_serve_instance_details.remote(), timeout=TIMEOUT_S)
    deployments = []
    for application, detail in sorted(details["applications"].items()):
        for name, deployment in sorted(detail["deployments"].items()):
            counts = Counter(_value(replica["state"]) for replica in deployment["replicas"])
            replicas = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            deployments.append(DeploymentStatus(application, name, _value(deployment["status"]), replicas))
    return deployments


def _value(state: Any) -> str:
    return str(getattr(state, "value", state))
