"""One running service for all modules of this package, behind Serve's own proxy.

Modules run in the order of their names: `test_deployment` needs a Ray without the service, `test_unexpected_requests`
writes items, so that it must come last.
"""

from collections.abc import Callable, Iterator

import pytest

from lrem.config import Config
from ray_apps.cluster.session import cluster
from tests.serving import Served, build_world, running_service


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory, new_port: Callable[[], int]) -> Iterator[Config]:
    """A Ray, and a model and an index to serve."""
    config = build_world(tmp_path_factory.mktemp("http"), new_port(), token_ids=True)
    with cluster(config):
        yield config


@pytest.fixture(scope="package")
def served(world: Config) -> Iterator[Served]:
    """The running service."""
    with running_service(world) as service:
        yield service
