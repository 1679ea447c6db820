"""How many workers and GPUs a stage asks for, on a cluster that is told what it can scale to."""

from collections.abc import Iterator

import pytest

from lrem.config import Config, load_config
from lrem.errors import DataError
from ray_apps.cluster.session import cluster, gpu_plan


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
def test_gpus_are_dealt_out(gpus: int, workers: int, engines: int, plan: tuple[int, float, float]) -> None:
    assert gpu_plan(with_gpus(gpus), workers, engines) == plan


def test_gpus_are_shared_where_that_is_asked_for_or_forbidden() -> None:
    shared = load_config(None, ["ray.gpus=4", "placement.share_gpus=true"])
    assert gpu_plan(shared, 2, 2) == (2, 0.6, 0.4)
    assert gpu_plan(shared, 2, 0) == (2, 1.0, 1.0)
    apart = load_config(None, ["ray.gpus=3", "placement.share_gpus=false"])
    assert gpu_plan(apart, 2, 1) == (2, 1.0, 1.0)
    with pytest.raises(DataError, match="need 4 GPUs of their own, there are 3"):
        gpu_plan(apart, 2, 2)


@pytest.mark.parametrize(
    ("gpus", "workers", "engines", "message"),
    [(8, 128, 0, "128 workers and 8 GPUs: set workers to 8 at most"), (1, 1, 2, "lower rollout.actors")],
)
def test_what_does_not_fit_is_refused(gpus: int, workers: int, engines: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        gpu_plan(with_gpus(gpus), workers, engines)
