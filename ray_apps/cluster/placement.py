"""Room for a stage's actors: what no machine will ever have is refused at once, what may come is waited for.

Ray itself waits for ever, with a warning in a log. Knows what machines there are, and asks the
autoscaler what it could add.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray._private.worker import global_worker
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GangResourceRequest, GetClusterStatusReply, NodeStatus
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lrem.errors import DataError

POLL_S, ASK_S = 1.0, 10.0
SURE_S = 12.0  # what the autoscaler says is up to two of its rounds old, of 5 s; what is free is known at once
Bundle = dict[str, float]  # resources that one machine has to give: {"CPU": 1, "GPU": 2}


def bundle(cpus: float, gpus: float, more: Bundle) -> Bundle:
    """What one actor takes of a machine: CPUs, GPUs if any, and what `placement` asks for.

    >>> bundle(1.0, 0.0, {"lrem_data": 1.0})
    {'CPU': 1.0, 'lrem_data': 1.0}
    """
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) | more


def driver_node() -> NodeAffinitySchedulingStrategy:
    """On the driver's machine: Ray would put what takes no CPU anywhere, on a spot machine too."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def wait_for_resources(bundles: list[Bundle], what: str, timeout_s: float, strategy: str = "PACK") -> None:
    """Return once the cluster could give all `bundles` at the same time; an autoscaler brings machines up for them.

    Raises:
        DataError: it never could; the message names what is missing.
        TimeoutError: it could not within `timeout_s`.
    """
    grows = is_autoscaler_v2()
    if not grows:
        machines = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        check_feasible(bundles, what, strategy, machines)
    group, deadline = placement_group(bundles, strategy), time.monotonic() + timeout_s
    hoped = time.monotonic()  # when last there was a way
    try:
        while not group.wait(min(POLL_S, max(0.0, deadline - time.monotonic()))):
            if not grows or not _never(group.id.hex(), bundles):
                hoped = time.monotonic()
            if time.monotonic() - hoped > SURE_S:
                raise DataError(_cannot_grow(bundles, what, strategy))
            if time.monotonic() > deadline:
                raise TimeoutError(shortage_message(bundles, what, timeout_s))
    finally:
        remove_placement_group(group)


@contextmanager
def reserve(bundles: list[Bundle], what: str, timeout_s: float, strategy: str = "PACK") -> Iterator[None]:
    """Keep room for `bundles` free meanwhile, so that what is placed now leaves it; no bundles: nothing to keep.

    Of GPUs that are shared Ray fills one before it takes the next: engines would take all of one.

    Raises:
        TimeoutError: there was none within `timeout_s`.
    """
    if not bundles:
        yield
        return
    group = placement_group(bundles, strategy)
    try:
        if not group.wait(timeout_s):
            raise TimeoutError(shortage_message(bundles, what, timeout_s))
        yield
    finally:
        remove_placement_group(group)


def _never(group: str, bundles: list[Bundle]) -> bool:
    """Whether the autoscaler finds no way to place a group, and nobody else has, or is to get, what it would take.

    Ray calls a group infeasible that has to wait for the work of others.
    """
    told = global_worker.gcs_client.get_cluster_status(timeout_s=ASK_S)  # public ways leave this part out
    status = GetClusterStatusReply.FromString(told)
    scaling, seen = status.autoscaling_state, status.cluster_resource_state
    infeasible = {_group_of(request) for request in scaling.infeasible_gang_resource_requests}
    if group not in infeasible or scaling.pending_instances or scaling.pending_instance_requests:
        return False
    if any(_group_of(request) not in infeasible for request in seen.pending_gang_resource_requests):
        return False
    return not any(
        _fits(bundle, node.total_resources) and not _fits(bundle, node.available_resources)
        for bundle in bundles
        for node in seen.node_states
        if node.status != NodeStatus.DEAD
    )


def _group_of(request: GangResourceRequest) -> str:
    return str(request.details.partition(":")[0])


def _fits(bundle: Bundle, machine: Mapping[str, float]) -> bool:
    return all(machine.get(name, 0.0) >= amount for name, amount in bundle.items())


def _cannot_grow(bundles: list[Bundle], what: str, strategy: str) -> str:
    if len(bundles) == 1:
        return (
            f"{what} needs a machine with {_said(bundles[0])}, and none that this cluster has, or may get, has all of "
            "it: lower what is asked for, or add such a kind of machine"
        )
    return (
        f"{what} needs {_said(_sum(bundles))} in {len(bundles)} pieces, placed {strategy}, and this cluster cannot "
        "give all of it at once, not even with every machine that it may add: lower the number of actors or workers, "
        "or raise the most machines of that kind"
    )


def check_feasible(bundles: list[Bundle], what: str, strategy: str, machines: Sequence[Bundle]) -> None:
    """Whether `machines`, wholly free, could give all `bundles`.

    Args:
        strategy: Ray's, of the group. machines: what each has.

    Raises:
        DataError: they could not; the message names what is missing.
    """
    if strategy == "STRICT_PACK":
        bundles = [_sum(bundles)]
    for bundle in bundles:
        if not any(_fits(bundle, machine) for machine in machines):
            largest = {name: max(machine.get(name, 0.0) for machine in machines) for name in bundle}
            raise DataError(
                f"{what} needs a machine with {_said(bundle)}, and none of this cluster has all of it (the most that "
                f"any has: {_said(largest)}): lower what is asked for, or add such a machine"
            )
    able = sum(any(_fits(bundle, machine) for bundle in bundles) for machine in machines)
    if strategy == "STRICT_SPREAD" and able < len(bundles):
        raise DataError(
            f"{what} have to be on {len(bundles)} machines (STRICT_SPREAD), and {able} of this cluster have room for "
            "any of them: lower their number, add machines, or choose another strategy"
        )
    needed = _sum(bundles)
    there = {name: sum(machine.get(name, 0.0) for machine in machines) for name in needed}
    missing = {name: amount - there[name] for name, amount in needed.items() if amount > there[name]}
    if missing:
        raise DataError(
            f"{what} needs {_said(needed)}, and all machines of this cluster have {_said(there)}: "
            f"{_said(missing)} missing; lower the number of actors or workers, or add machines"
        )


def shortage_message(bundles: list[Bundle], what: str, timeout_s: float) -> str:
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
