"""Room for a stage's actors: what no machine will ever have is refused at once, what may come is waited for.

Ray itself waits for ever, with a warning in a log. Knows what machines there are, and asks the
autoscaler what it could add.
"""

import time

import ray
from ray._private.worker import global_worker
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lrem.schema import DataError

POLL_S, ASK_S = 1.0, 10.0
Bundle = dict[str, float]  # resources that one machine has to give: {"CPU": 1, "GPU": 2}


def bundle(cpus: float, gpus: float, more: Bundle) -> Bundle:
    """What one actor takes of a machine: CPUs, GPUs if any, and what `placement` asks for.

    >>> bundle(1.0, 0.0, {"lrem_data": 1.0})
    {'CPU': 1.0, 'lrem_data': 1.0}
    """
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) | more


def here() -> NodeAffinitySchedulingStrategy:
    """On the driver's machine: Ray would put what takes no CPU anywhere, on a spot machine too."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def await_room(bundles: list[Bundle], what: str, timeout_s: float, strategy: str = "PACK") -> None:
    """Return once the cluster could give all `bundles` at the same time; an autoscaler brings machines up for them.

    Raises:
        DataError: it never could; the message names what is missing.
        TimeoutError: it could not within `timeout_s`.
    """
    grows = is_autoscaler_v2()
    if not grows:
        _refuse_impossible(bundles, what)
    group, deadline = placement_group(bundles, strategy), time.monotonic() + timeout_s
    try:
        while not group.wait(min(POLL_S, max(0.0, deadline - time.monotonic()))):
            if grows and group.id.hex() in _infeasible():  # now; with all machines up it may be others' work alone
                _refuse_impossible(bundles, what)
            if time.monotonic() > deadline:
                raise TimeoutError(no_room(bundles, what, timeout_s))
    finally:
        remove_placement_group(group)


def _infeasible() -> set[str]:
    """Groups that the autoscaler has found no way to place, with all the machines that it may add."""
    status = global_worker.gcs_client.get_cluster_status(timeout_s=ASK_S)  # public ways leave this part out
    state = GetClusterStatusReply.FromString(status).autoscaling_state
    return {request.details.partition(":")[0] for request in state.infeasible_gang_resource_requests}


def _refuse_impossible(bundles: list[Bundle], what: str) -> None:
    """Raises DataError where a cluster that does not grow any more could not give all `bundles`."""
    machines = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    for bundle in bundles:
        if not any(all(machine.get(name, 0.0) >= amount for name, amount in bundle.items()) for machine in machines):
            largest = {name: max(machine.get(name, 0.0) for machine in machines) for name in bundle}
            raise DataError(
                f"{what} needs a machine with {_said(bundle)}, and none that this cluster has, or may get, has all "
                f"of it (the most that any has: {_said(largest)}): lower what is asked for, or add such a machine"
            )
    needed = _sum(bundles)
    there = {name: sum(machine.get(name, 0.0) for machine in machines) for name in needed}
    missing = {name: amount - there[name] for name, amount in needed.items() if amount > there[name]}
    if missing:
        raise DataError(
            f"{what} needs {_said(needed)}, and all machines that this cluster has, or may get, have {_said(there)}: "
            f"{_said(missing)} missing; lower the number of actors or workers, or add machines"
        )


def no_room(bundles: list[Bundle], what: str, timeout_s: float) -> str:
    """What to say when room was waited for in vain."""
    return (
        f"no room for {what} ({_said(_sum(bundles))}) within {timeout_s:g} s (ray.start_timeout_s): `lrem status` says "
        "who holds it"
    )


def _sum(bundles: list[Bundle]) -> Bundle:
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in {n for b in bundles for n in b}}


def _said(resources: Bundle) -> str:
    """
    >>> _said({"GPU": 2.0, "CPU": 1})
    '1 CPU, 2 GPU'
    """
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()))
