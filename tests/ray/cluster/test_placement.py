"""Placement on a cluster of logical GPUs: what is refused, how GPUs are shared, and which actor gets which GPU."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from lrem.config import Config, load_config
from lrem.errors import DataError
from ray_apps.cluster.gpus import plan_gpus
from ray_apps.cluster.placement import reserve
from ray_apps.cluster.resources import Bundle, bundle, check_feasible
from ray_apps.rollouts.client import start_pool

SMALL, LARGE = {"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("bundles", "strategy", "key_fact"),
    [
        ([{"GPU": 3.0}], "PACK", r"no machine .* 3 GPU .*: 2 GPU\)"),
        ([{"GPU": 1.0}] * 5, "PACK", r"5 GPU, .* 4 GPU \(1 GPU missing\)"),
        ([{"GPU": 1.0}] * 3, "STRICT_PACK", "no machine .* 3 GPU"),
        ([{"GPU": 1.0}] * 3, "STRICT_SPREAD", "STRICT_SPREAD takes 3 machines, and only 2"),
        ([{"gold": 1.0}], "SPREAD", ": 0 gold"),
    ],
)
def test_an_impossible_placement_is_refused(bundles: list[Bundle], strategy: str, key_fact: str) -> None:
    with pytest.raises(DataError, match=key_fact):
        check_feasible(bundles, "the actors", strategy, [SMALL, LARGE, LARGE])


@pytest.mark.parametrize(
    ("bundles", "strategy"),
    [
        ([{"GPU": 2.0}] * 2, "STRICT_SPREAD"),
        ([{"GPU": 1.0}] * 2, "STRICT_PACK"),
        ([{"GPU": 1.0}] * 4, "PACK"),
        ([{"CPU": 2.0}, {"CPU": 8.0}], "SPREAD"),
    ],
)
def test_a_possible_placement_is_accepted(bundles: list[Bundle], strategy: str) -> None:
    check_feasible(bundles, "the actors", strategy, [SMALL, LARGE, LARGE])


@pytest.fixture(scope="module")
def gpus() -> Iterator[int]:
    """A machine with three logical GPUs: Ray assigns them without checking that they exist."""
    ray.init("local", num_cpus=8, num_gpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield 3
    ray.shutdown()


@pytest.mark.parametrize(("workers", "engines"), [(2, 2), (3, 3), (3, 1), (1, 3)])
def test_workers_that_share_gpus_get_one_each(gpus: int, workers: int, engines: int) -> None:
    """Engines are placed first, as in a run; no GPU has two workers, and none is overcommitted."""
    config = load_config(None, [f"ray.gpus={gpus}", "placement.share_gpus=true"])
    plan = plan_gpus(config, workers, engines)
    assert plan.shared
    training, rollouts = [bundle(1.0, plan.worker_gpus, {})] * workers, [bundle(1.0, plan.engine_gpus, {})] * engines
    with reserve(training, "the workers", 60):
        engine_group = placement_group(rollouts)
        assert engine_group.wait(60)
    worker_group = placement_group(training)
    assert worker_group.wait(60)
    try:
        engines_on, workers_on = assigned_gpus(engine_group, rollouts), assigned_gpus(worker_group, training)
    finally:
        remove_placement_group(engine_group)
        remove_placement_group(worker_group)
    assert len(set(workers_on)) == workers
    for gpu in set(engines_on):
        assert plan.worker_gpus * workers_on.count(gpu) + plan.engine_gpus * engines_on.count(gpu) <= 1


def test_strictly_spread_engines_need_one_machine_each(gpus: int, tmp_path: Path) -> None:
    config = load_config(None, ["ray.gpus=0", "rollout.actors=2", "placement.engines=STRICT_SPREAD"])
    with pytest.raises(DataError, match="STRICT_SPREAD takes 2 machines, and only 1"):
        start_pool(tmp_path, config)


def with_gpus(count: int) -> Config:
    return load_config(None, [f"ray.gpus={count}"])


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("count", "workers", "engines", "plan"),
    [
        (0, 2, 1, (2, 0.0, 0.0)),
        (8, 8, 0, (8, 1.0, 1.0)),
        (3, 2, 1, (2, 1.0, 1.0)),
        (2, 2, 2, (2, 0.6, 0.4)),
        (1, 2, 1, (1, 0.6, 0.4)),
    ],
)
def test_workers_and_engines_share_gpus_only_when_there_are_too_few(
    count: int, workers: int, engines: int, plan: tuple[int, float, float]
) -> None:
    assert plan_gpus(with_gpus(count), workers, engines) == plan


@pytest.mark.usefixtures("gpus")
def test_sharing_can_be_required_or_forbidden() -> None:
    shared = load_config(None, ["ray.gpus=4", "placement.share_gpus=true"])
    assert plan_gpus(shared, 2, 2) == (2, 0.6, 0.4)
    assert plan_gpus(shared, 2, 0) == (2, 1.0, 1.0)
    apart = load_config(None, ["ray.gpus=3", "placement.share_gpus=false"])
    assert plan_gpus(apart, 2, 1) == (2, 1.0, 1.0)
    with pytest.raises(DataError, match=r"4 GPUs.*there are 3: .*share_gpus"):
        plan_gpus(apart, 2, 2)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("count", "workers", "engines", "message"),
    [(8, 128, 0, "128 workers.*set workers to at most 8"), (1, 1, 2, r"lower rollout\.actors")],
)
def test_too_many_workers_or_engines_are_refused(count: int, workers: int, engines: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_gpus(with_gpus(count), workers, engines)


def assigned_gpus(group: "ray.util.placement_group.PlacementGroup", bundles: list[Bundle]) -> list[int]:
    """Return the GPU of each bundle."""

    def gpu_id() -> int:
        return int(ray.get_gpu_ids()[0])

    references = [
        ray.remote(gpu_id)
        .options(num_cpus=1, num_gpus=one["GPU"], scheduling_strategy=PlacementGroupSchedulingStrategy(group, number))
        .remote()
        for number, one in enumerate(bundles)
    ]
    return list(ray.get(references, timeout=60))
