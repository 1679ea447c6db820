"""The address of Ray is tested before anything waits for it."""

import socket
import time

import pytest

from lrem.config import load_config
from lrem.errors import ConfigError
from ray_apps.cluster.session import cluster, ray_address


def test_a_dead_cluster_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        started = time.monotonic()
        with (
            pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address} within 2 s"),
            cluster(load_config(None, ["ray.start_timeout_s=2"])),
        ):
            pass
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_an_address_that_accepts_connections_is_returned(form: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = form.format(f"127.0.0.1:{server.getsockname()[1]}")
        assert ray_address(load_config(None, [f"ray.address={address}"]), "local") == address


@pytest.mark.parametrize(("address", "fact"), [("head", "HOST:6379"), ("http://head:8265", "the jobs API")])
def test_an_address_of_another_kind_is_refused(address: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        ray_address(load_config(None, [f"ray.address={address}"]), "local")
