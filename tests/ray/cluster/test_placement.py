"""Room on a cluster of logical GPUs: what could never be there, and who lands on which GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lrem.config import load_config
from lrem.errors import DataError
from ray_apps.cluster.placement import Bundle, bundle, check_feasible, reserve
from ray_apps.cluster.session import gpu_plan
from ray_apps.rollouts.client import start_pool

SMALL, LARGE = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("wanted", "strategy", "why"),
    [
        ([{"GPU": 3.0}], "PACK", r"needs a machine with 3 GPU, .* \(the most that any has: 2 GPU\)"),
        ([{"GPU": 1.0}] * 5, "PACK", "needs 5 GPU, and all machines of this cluster have 4 GPU: 1 GPU missing"),
        ([{"GPU": 1.0}] * 3, "STRICT_PACK", "needs a machine with 3 GPU"),
        ([{"GPU": 1.0}] * 3, "STRICT_SPREAD", "have to be on 3 machines .* and 2 of this cluster have room"),
        ([{"gold": 1.0}], "SPREAD", "the most that any has: 0 gold"),
    ],
)
def test_what_can_never_be_is_refused(wanted: list[Bundle], strategy: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        check_feasible(wanted, "it", strategy, [SMALL, LARGE, LARGE])


@pytest.mark.parametrize(
    ("wanted", "strategy"),
    [
        ([{"GPU": 2.0}] * 2, "STRICT_SPREAD"),
        ([{"GPU": 1.0}] * 2, "STRICT_PACK"),
        ([{"GPU": 1.0}] * 4, "PACK"),
        ([{"CPU": 2.0}, {"CPU": 8.0}], "SPREAD"),
    ],
)
def test_what_may_be_is_not(wanted: list[Bundle], strategy: str) -> None:
    check_feasible(wanted, "it", strategy, [SMALL, LARGE, LARGE])


@pytest.fixture(scope="module")
def gpus() -> Iterator[int]:
    """A machine with three GPUs, as far as Ray knows: it deals them out without looking at them."""
    ray.init("local", num_cpus=8, num_gpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield 3
    ray.shutdown()


@pytest.mark.parametrize(("workers", "engines"), [(2, 2), (3, 3), (3, 1), (1, 3)])
def test_workers_that_share_gpus_have_one_each(gpus: int, workers: int, engines: int) -> None:
    """Engines first, as a run starts them; no GPU has two workers, and none more than it has."""
    config = load_config(None, [f"ray.gpus={gpus}", "placement.share_gpus=true"])
    plan = gpu_plan(config, workers, engines)
    assert plan.shared
    training, rollouts = [bundle(1.0, plan.worker, {})] * workers, [bundle(1.0, plan.engine, {})] * engines
    with reserve(training, "the workers", 60):
        first = placement_group(rollouts)
        assert first.wait(60)
    then = placement_group(training)
    assert then.wait(60)
    try:
        engines_on, workers_on = dealt(first, rollouts), dealt(then, training)
    finally:
        remove_placement_group(first)
        remove_placement_group(then)
    assert len(set(workers_on)) == workers
    for gpu in set(engines_on):
        assert plan.worker * workers_on.count(gpu) + plan.engine * engines_on.count(gpu) <= 1


def test_engines_that_must_be_apart_need_as_many_machines(gpus: int, tmp_path: Path) -> None:
    config = load_config(None, ["ray.gpus=0", "rollout.actors=2", "placement.engines=STRICT_SPREAD"])
    with pytest.raises(DataError, match=r"have to be on 2 machines \(STRICT_SPREAD\), and 1 of this cluster"):
        start_pool(tmp_path, config)


def dealt(group: "ray.util.placement_group.PlacementGroup", bundles: list[Bundle]) -> list[int]:
    """The GPU of each bundle."""

    def which() -> int:
        return int(ray.get_gpu_ids()[0])

    asked = [
        ray.remote(which).options(
            num_cpus=1, num_gpus=one["GPU"], scheduling_strategy=PlacementGroupSchedulingStrategy(group, number)
        )
        for number, one in enumerate(bundles)
    ]
    return list(ray.get([task.remote() for task in asked], timeout=60))
