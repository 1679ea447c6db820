"""How many workers and GPUs a stage gets, on a cluster with a given number of GPUs."""

from collections.abc import Iterator

import pytest

from lrem.config import Config, load_config
from lrem.errors import DataError
from ray_apps.cluster.gpus import plan_gpus
from ray_apps.cluster.session import cluster


def with_gpus(count: int) -> Config:
    return load_config(None, ["ray.num_cpus=4", f"ray.gpus={count}"])


@pytest.fixture(scope="module", autouse=True)
def running() -> Iterator[None]:
    with cluster(with_gpus(0)):
        yield


@pytest.mark.parametrize(
    ("gpus", "workers", "engines", "plan"),
    [
        (0, 2, 1, (2, 0.0, 0.0)),
        (8, 8, 0, (8, 1.0, 1.0)),
        (3, 2, 1, (2, 1.0, 1.0)),
        (2, 2, 2, (2, 0.6, 0.4)),
        (1, 2, 1, (1, 0.6, 0.4)),
    ],
)
def test_workers_and_engines_share_gpus_only_when_there_are_too_few(
    gpus: int, workers: int, engines: int, plan: tuple[int, float, float]
) -> None:
    assert plan_gpus(with_gpus(gpus), workers, engines) == plan


def test_sharing_can_be_required_or_forbidden() -> None:
    shared = load_config(None, ["ray.gpus=4", "placement.share_gpus=true"])
    assert plan_gpus(shared, 2, 2) == (2, 0.6, 0.4)
    assert plan_gpus(shared, 2, 0) == (2, 1.0, 1.0)
    apart = load_config(None, ["ray.gpus=3", "placement.share_gpus=false"])
    assert plan_gpus(apart, 2, 1) == (2, 1.0, 1.0)
    with pytest.raises(DataError, match=r"4 GPUs.*there are 3: .*share_gpus"):
        plan_gpus(apart, 2, 2)


@pytest.mark.parametrize(
    ("gpus", "workers", "engines", "message"),
    [(8, 128, 0, "128 workers.*set workers to at most 8"), (1, 1, 2, r"lower rollout\.actors")],
)
def test_too_many_workers_or_engines_are_refused(gpus: int, workers: int, engines: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan_gpus(with_gpus(gpus), workers, engines)
