"""Wait for the resources of a stage's actors: refuse what can never be placed, wait for what may become free.

Ray itself would wait forever and only log a warning.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private.worker import global_worker
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import GangResourceRequest, GetClusterStatusReply, NodeStatus
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lrem.errors import DataError
from ray_apps.cluster.resources import Bundle, cannot_grow_message, check_feasible, fits, shortage_message

POLL_S, STATUS_TIMEOUT_S = 1.0, 10.0
INFEASIBLE_S = 12.0  # the autoscaler's answer may be two of its 5 s rounds old, so it has to hold for longer than that


def driver_node() -> NodeAffinitySchedulingStrategy:
    """Return the strategy that pins an actor to the driver's machine.

    Ray would place an actor without CPUs on any machine, even on a spot machine.
    """
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def wait_for_resources(bundles: list[Bundle], what: str, timeout_s: float, strategy: str = "PACK") -> None:
    """Wait until the cluster could give all `bundles` at the same time; an autoscaler adds machines for them.

    Raises:
        DataError: it never could; the message names what is missing.
        TimeoutError: it could not within `timeout_s`.
    """
    autoscaling = is_autoscaler_v2()
    if not autoscaling:
        machines = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        check_feasible(bundles, what, strategy, machines)
    group, deadline = placement_group(bundles, strategy), time.monotonic() + timeout_s
    last_feasible = time.monotonic()
    try:
        while not group.wait(min(POLL_S, max(0.0, deadline - time.monotonic()))):
            if not autoscaling or not _is_infeasible(group.id.hex(), bundles):
                last_feasible = time.monotonic()
            if time.monotonic() - last_feasible > INFEASIBLE_S:
                raise DataError(cannot_grow_message(bundles, what, strategy))
            if time.monotonic() > deadline:
                raise TimeoutError(shortage_message(bundles, what, timeout_s))
    finally:
        remove_placement_group(group)


@contextmanager
def reserve(bundles: list[Bundle], what: str, timeout_s: float, strategy: str = "PACK") -> Iterator[None]:
    """Keep the resources of `bundles` free during a block, so that actors placed in it leave them; [] keeps nothing.

    Ray fills one shared GPU before it uses the next: without a reservation, engines would fill a whole GPU.

    Raises:
        TimeoutError: they did not become free within `timeout_s`.
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


def _is_infeasible(group: str, bundles: list[Bundle]) -> bool:
    """Return True if the autoscaler cannot place the group and no running or queued work could make room for it.

    Ray also calls a group infeasible that only has to wait for other work to end.
    """
    reply = global_worker.gcs_client.get_cluster_status(timeout_s=STATUS_TIMEOUT_S)  # no public API has this part
    status = GetClusterStatusReply.FromString(reply)
    scaling, current = status.autoscaling_state, status.cluster_resource_state
    infeasible = {_group_of(request) for request in scaling.infeasible_gang_resource_requests}
    if group not in infeasible or scaling.pending_instances or scaling.pending_instance_requests:
        return False
    if any(_group_of(request) not in infeasible for request in current.pending_gang_resource_requests):
        return False
    return not any(
        fits(bundle, node.total_resources) and not fits(bundle, node.available_resources)
        for bundle in bundles
        for node in current.node_states
        if node.status != NodeStatus.DEAD
    )


def _group_of(request: GangResourceRequest) -> str:
    return str(request.details.partition(":")[0])
