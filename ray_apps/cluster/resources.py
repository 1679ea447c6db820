"""Resource bundles, and whether the machines of a cluster could ever hold them. Plain arithmetic: no Ray in here."""

from collections.abc import Mapping, Sequence

from lrem.errors import DataError

Bundle = dict[str, float]  # the resources of one actor, which a single machine has to provide: {"CPU": 1, "GPU": 2}


def bundle(cpus: float, gpus: float, custom: Bundle) -> Bundle:
    """Return the resources of one actor: CPUs, GPUs if any, and the custom resources of `placement`.

    >>> bundle(1.0, 0.0, {"lrem_data": 1.0})
    {'CPU': 1.0, 'lrem_data': 1.0}
    """
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {}) | custom


def fits(bundle: Bundle, machine: Mapping[str, float]) -> bool:
    """Return True if the machine has all resources of the bundle."""
    return all(machine.get(name, 0.0) >= amount for name, amount in bundle.items())


def check_feasible(bundles: list[Bundle], what: str, strategy: str, machines: Sequence[Bundle]) -> None:
    """Check that the machines, with nothing else running on them, could hold all bundles.

    Args:
        strategy: a strategy of Ray's placement groups. machines: the total resources of each machine.

    Raises:
        DataError: they could not; the message names what is missing.
    """
    if strategy == "STRICT_PACK":
        bundles = [_total(bundles)]
    for bundle in bundles:
        if not any(fits(bundle, machine) for machine in machines):
            largest = {name: max(machine.get(name, 0.0) for machine in machines) for name in bundle}
            raise DataError(
                f"cannot place {what}: no machine of this cluster has {_describe(bundle)} (the most on one machine: "
                f"{_describe(largest)}); request less, or add such a machine"
            )
    large_enough = sum(any(fits(bundle, machine) for bundle in bundles) for machine in machines)
    if strategy == "STRICT_SPREAD" and large_enough < len(bundles):
        raise DataError(
            f"cannot place {what}: STRICT_SPREAD takes {len(bundles)} machines, and only {large_enough} of this "
            "cluster are large enough; use fewer actors or workers, add machines, or choose another strategy"
        )
    _check_total(bundles, what, machines)


def _check_total(bundles: list[Bundle], what: str, machines: Sequence[Bundle]) -> None:
    required = _total(bundles)
    present = {name: sum(machine.get(name, 0.0) for machine in machines) for name in required}
    missing = {name: amount - present[name] for name, amount in required.items() if amount > present[name]}
    if missing:
        raise DataError(
            f"cannot place {what}: it takes {_describe(required)}, and all machines of this cluster together have "
            f"{_describe(present)} ({_describe(missing)} missing); use fewer actors or workers, or add machines"
        )


def cannot_grow_message(bundles: list[Bundle], what: str, strategy: str) -> str:
    """Return the message for bundles that no scaling of the cluster could hold."""
    if len(bundles) == 1:
        return (
            f"cannot place {what}: no machine that this cluster has or may add has {_describe(bundles[0])}; request "
            "less, or add such a machine type"
        )
    return (
        f"cannot place {what}: {_describe(_total(bundles))} in {len(bundles)} bundles ({strategy}) is more than this "
        "cluster can provide, even with every machine it may add; use fewer actors or workers, or raise the maximum "
        "number of machines"
    )


def shortage_message(bundles: list[Bundle], what: str, timeout_s: float) -> str:
    """Return the message for bundles that did not become free in time."""
    return (
        f"cannot place {what}: {_describe(_total(bundles))} did not become free within {timeout_s:g} s "
        "(ray.start_timeout_s); `lrem status` shows what uses the cluster"
    )


def _total(bundles: list[Bundle]) -> Bundle:
    return {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in {n for b in bundles for n in b}}


def _describe(resources: Bundle) -> str:
    """Return resources as text.

    >>> _describe({"GPU": 2.0, "CPU": 1})
    '1 CPU, 2 GPU'
    """
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()))
