"""One running service for all modules of this package, with keys and tight limits, behind HAProxy.

Modules run in the order of their names: `test_rollover` replaces and stops the service, so that it must come last.
"""

from collections.abc import Callable, Iterator

import pytest

from lrem.config import Config
from ray_apps.cluster.session import cluster
from tests.ray.serving.operations.helpers import KEYS, WRITE
from tests.serving import Served, build_world, running_service


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory, new_port: Callable[[], int]) -> Iterator[Config]:
    """A Ray, and a model and an index to serve; each shard has two replicas."""
    folder = tmp_path_factory.mktemp("operations")
    (folder / "keys").write_text(KEYS)
    config = build_world(
        folder,
        new_port(),
        keys_file=folder / "keys",
        shard={"replicas": 2},
        reason_timeout_s=5,
        search_timeout_s=5,
        max_requests=40,
        max_body_mb=0.5,
    )
    config = config.model_copy(update={"ray": config.ray.model_copy(update={"haproxy": True})})
    with cluster(config):
        yield config


@pytest.fixture(scope="package")
def served(world: Config) -> Iterator[Served]:
    """The running service, with a key that may write."""
    with running_service(world, authorization=f"Bearer {WRITE}") as service:
        yield service
