"""cluster.yaml is valid for the pinned Ray, and grows, pays and listens as its comments say."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parent.parent / "cluster.yaml"


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file as `ray up` sees it: Ray's defaults filled in, then checked against Ray's schema."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    validate_config(config)
    return config


def test_each_worker_type_scales_from_zero(cluster: dict[str, Any]) -> None:
    bounds = {
        name: (node["min_workers"], node["max_workers"])
        for name, node in cluster["available_node_types"].items()
        if name != cluster["head_node_type"]
    }
    assert bounds == {"cpu": (0, 8), "gpu": (0, 4)}
    assert cluster["max_workers"] == sum(most for _, most in bounds.values())
    assert cluster["idle_timeout_minutes"] == 10


def test_spot_for_cpu_workers_only(cluster: dict[str, Any]) -> None:
    spot = {
        name
        for name, node in cluster["available_node_types"].items()
        if node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
    }
    assert spot == {"cpu"}


def test_one_image_and_disk_for_all(cluster: dict[str, Any]) -> None:
    nodes = [node["node_config"] for node in cluster["available_node_types"].values()]
    assert len({node["ImageId"] for node in nodes}) == 1
    assert {node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] for node in nodes} == {150}


def test_only_ssh_is_open(cluster: dict[str, Any]) -> None:
    # Ray's own rules are SSH from outside and anything between the nodes; IpPermissions would add to them.
    assert "IpPermissions" not in cluster["provider"]["security_group"]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_every_node_gets_the_token_and_the_project(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert "bash ~/lrem/scripts/setup.sh" in cluster["worker_setup_commands"]
    assert "bash ~/lrem/scripts/setup.sh" in cluster["head_setup_commands"]
    for command in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]:
        assert command.startswith("export RAY_AUTH_MODE=token PATH=$HOME/lrem/.venv/bin:$PATH;")
