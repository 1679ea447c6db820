"""cluster.yaml is valid for the pinned Ray, and its scaling, spot machines, storage and ports are as documented."""

import copy
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from lrem.config import load_config

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"
GIB = 2**30
# What Ray finds in these instance types; it keeps 30 % of a worker's memory for its object store.
FOUND = {
    "m6i.2xlarge": {"CPU": 8},
    "m6i.4xlarge": {"CPU": 16, "memory": int(64 * GIB * 0.7)},
    "g6e.4xlarge": {"CPU": 16, "memory": int(128 * GIB * 0.7), "GPU": 1, "accelerator_type:L40S": 1},
}


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    """The file as `ray up` sees it: with Ray's defaults, and checked against Ray's schema."""
    config: dict[str, Any] = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    validate_config(config)
    return config


def workers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: node for name, node in cluster["available_node_types"].items() if name != cluster["head_node_type"]}


def started_for(cluster: dict[str, Any], requested: dict[str, float]) -> dict[str, int]:
    """Return the machines that Ray's autoscaler would add to a busy head for one actor with these resources."""
    cluster = copy.deepcopy(cluster)
    for node in cluster["available_node_types"].values():
        node["resources"] = FOUND[node["node_config"]["InstanceType"]] | node["resources"]  # as Ray's AWS provider does
    types = AutoscalingConfig(cluster, skip_content_hash=True).get_node_type_configs()
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs={name: node for name, node in types.items() if name != cluster["head_node_type"]},
        max_num_nodes=cluster["max_workers"],
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(requested)]),
    )
    return {launch.instance_type: launch.count for launch in ResourceDemandScheduler().schedule(request).to_launch}


def test_each_worker_type_scales_from_zero(cluster: dict[str, Any]) -> None:
    bounds = {name: (node["min_workers"], node["max_workers"]) for name, node in workers(cluster).items()}
    assert bounds == {"cpu_spot": (0, 8), "cpu": (0, 4), "gpu": (0, 4), "gpu_spot": (0, 4)}
    assert cluster["max_workers"] == sum(most for _, most in bounds.values())
    assert cluster["idle_timeout_minutes"] == 10


def test_spot_for_data_and_rollouts_only(cluster: dict[str, Any]) -> None:
    spot = {
        name
        for name, node in cluster["available_node_types"].items()
        if node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
    }
    assert spot == {"cpu_spot", "gpu_spot"}
    offered = {name: set(node["resources"]) for name, node in workers(cluster).items()}
    assert set.union(*(offered[name] for name in spot)) == {"lrem_data", "lrem_rollout"}
    assert offered["cpu"] | offered["gpu"] == {"lrem_index", "lrem_training", "lrem_reasoner"}
    assert {count for node in workers(cluster).values() for count in node["resources"].values()} == {1000}


@pytest.mark.parametrize(
    ("requested", "machine"),
    [
        ({"CPU": 1, "lrem_data": 1}, "cpu_spot"),
        ({"CPU": 1, "GPU": 1, "lrem_data": 1}, "gpu_spot"),
        ({"CPU": 1, "GPU": 1, "lrem_rollout": 1}, "gpu_spot"),
        ({"CPU": 1, "GPU": 0.5, "lrem_training": 1}, "gpu"),
        ({"CPU": 1, "GPU": 1, "lrem_reasoner": 1}, "gpu"),
        ({"lrem_index": 1}, "cpu"),
        ({"CPU": 1}, "cpu"),  # no custom resource: on demand
        ({"CPU": 1, "GPU": 1}, "gpu"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else value,
)
def test_the_autoscaler_starts_the_machine_that_the_work_requests(
    cluster: dict[str, Any], requested: dict[str, float], machine: str
) -> None:
    assert started_for(cluster, requested) == {machine: 1}


def test_no_machine_has_two_gpus(cluster: dict[str, Any]) -> None:
    assert started_for(cluster, {"GPU": 2}) == {}


def test_the_settings_in_its_comments_exist_and_request_what_it_offers(cluster: dict[str, Any]) -> None:
    named = re.findall(r"placement\.\w+\.\w+=1", CLUSTER.read_text())
    placement = load_config(None, named).placement
    requested = {
        name for kind in (placement.data, placement.training, placement.rollouts, placement.reasoner) for name in kind
    }
    offered = set().union(*(node["resources"] for node in workers(cluster).values()))
    assert requested == {"lrem_data", "lrem_training", "lrem_rollout", "lrem_reasoner"} == offered & requested


def test_all_machines_have_the_same_image_and_disk_size(cluster: dict[str, Any]) -> None:
    nodes = [node["node_config"] for node in cluster["available_node_types"].values()]
    assert len({node["ImageId"] for node in nodes}) == 1
    assert {node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] for node in nodes} == {150}


def test_machines_have_profiles_instead_of_keys(cluster: dict[str, Any]) -> None:
    profiles = {
        name: node["node_config"]["IamInstanceProfile"]["Name"]
        for name, node in cluster["available_node_types"].items()
    }
    assert profiles.pop("head") == "lrem-head"
    assert set(profiles.values()) == {"lrem-worker"}
    assert "AWS_SECRET" not in CLUSTER.read_text()


def test_the_bucket_is_mounted_before_ray_starts(cluster: dict[str, Any]) -> None:
    assert len(re.findall(r"\bfs-[0-9a-f]{17}\b", CLUSTER.read_text())) == 1  # one place to set
    setup = cluster["worker_setup_commands"]
    assert setup == [command for command in cluster["head_setup_commands"] if "boto3" not in command]
    [table], [mount] = ([i for i, line in enumerate(setup) if part in line] for part in ("/etc/fstab", "sudo mount "))
    assert table < mount < setup.index("bash ~/lrem/scripts/setup.sh")
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        assert "mountpoint -q /shared && ray start" in commands[-1]


def test_every_command_is_valid_bash(cluster: dict[str, Any]) -> None:
    kinds = ("head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    script = "\n".join(command for kind in kinds for command in cluster[kind])
    assert subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False).stderr == ""


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
