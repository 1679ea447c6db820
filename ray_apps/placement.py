"""Room for a stage's actors: what no machine will ever have is refused at once, what may come is waited for.

Ray itself waits for ever, with a warning in a log. Knows what the cluster has and what its autoscaler may add.
"""

import sys

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from lrem.schema import DataError

Bundle = dict[str, float]  # resources that one machine has to give: {"CPU": 1, "GPU": 2}


def bundle(cpus: float, gpus: float, more: Bundle) -> Bundle:
    """What one actor takes of a machine: CPUs, GPUs if any, and what `placement` asks for.

    >>> bundle(1.0, 0.0, {"lrem_data": 1.0})
    {'CPU': 1.0, 'lrem_data': 1.0}
    """
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) | more


def await_room(bundles: list[Bundle], what: str, timeout_s: float) -> None:
    """Return once the cluster could give all `bundles` at the same time; an autoscaler brings machines up for them.

    Raises:
        DataError: it never could.
        TimeoutError: it could not within `timeout_s`.
    """
    refuse_impossible(bundles, what)
    group = placement_group(bundles)
    try:
        if not group.wait(timeout_s):
            raise TimeoutError(no_room(bundles, what, timeout_s))
    finally:
        remove_placement_group(group)


def refuse_impossible(bundles: list[Bundle], what: str) -> None:
    """Whether the cluster at its largest could give all `bundles`.

    Raises:
        DataError: it could not; the message names what is missing.
    """
    machines = _machines()
    for bundle in bundles:
        if not any(_fits(bundle, machine) for machine, _ in machines):
            largest = {name: max(machine.get(name, 0.0) for machine, _ in machines) for name in bundle}
            raise DataError(
                f"{what} needs a machine with {_said(bundle)}, and no machine of this cluster has, or may get, more "
                f"than {_said(largest)}: lower what is asked for, or add a node type to the cluster's configuration"
            )
    needed = _sum(bundles)
    largest = {name: sum(count * machine.get(name, 0.0) for machine, count in machines) for name in needed}
    missing = {name: amount - largest[name] for name, amount in needed.items() if amount > largest[name]}
    if missing:
        raise DataError(
            f"{what} needs {_said(needed)}, and this cluster at its largest has {_said(largest)}: {_said(missing)} "
            "missing; lower the number of actors or workers, or raise max_workers in the cluster's configuration"
        )


def no_room(bundles: list[Bundle], what: str, timeout_s: float) -> str:
    """What to say when room was waited for in vain."""
    return (
        f"no room for {what} ({_said(_sum(bundles))}) within {timeout_s:g} s (ray.start_timeout_s): `lrem status` says "
        "who holds it"
    )


def _machines() -> list[tuple[Bundle, int]]:
    """Resources of a machine and how many such there may be: those that are up, and those an autoscaler may add."""
    machines = [(dict(node["Resources"]), 1) for node in ray.nodes() if node["Alive"]]
    config = ray._private.state.state.get_cluster_config()  # an autoscaler's; no public function gives it
    for kind in config.node_group_configs if config else ():
        limit = kind.max_count if kind.max_count >= 0 else sys.maxsize
        machines.append((dict(kind.resources), limit))
    return machines


def _fits(bundle: Bundle, machine: Bundle) -> bool:
    return all(machine.get(name, 0.0) >= amount for name, amount in bundle.items())


def _sum(bundles: list[Bundle]) -> Bundle:
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in {n for b in bundles for n in b}}


def _said(resources: Bundle) -> str:
    """
    >>> _said({"GPU": 2.0, "CPU": 1})
    '1 CPU, 2 GPU'
    """
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()))
