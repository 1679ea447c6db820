"""A cluster that scales on one machine: Ray's autoscaler with its fake provider, whose machines are raylets.

For Ray these are real nodes: they have their own resources, run actors, are drained, and die.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.ray_cluster import RayHead, ray_head

IDLE_MINUTES = 0.1


@contextmanager
def autoscaling_head(folder: Path, new_port: Callable[[], int], kinds: dict[str, dict[str, Any]]) -> Iterator[RayHead]:
    """Start a head with an autoscaler.

    Args:
        kinds: machine types by name, each with its resources and max_workers.
    """
    port = new_port()
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": f"127.0.0.1:{port}",
    }
    types = {"ray.head.default": {"resources": {"CPU": 4}, "max_workers": 0, "node_config": {}}}
    types |= {name: {"min_workers": 0, "node_config": {}} | kind for name, kind in kinds.items()}
    config: dict[str, Any] = {
        "cluster_name": "fake",
        "max_workers": sum(kind["max_workers"] for kind in kinds.values()),
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": provider,
        "auth": {"ssh_user": "none"},
        "docker": {},
        "head_node_type": "ray.head.default",
        "available_node_types": types,
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    steps = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config |= {f"{step}_commands": [] for step in steps}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "autoscaling.yaml"
    file.write_text(yaml.safe_dump(config))
    env = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    options = ["--num-cpus=4", f"--autoscaling-config={file}"]
    with ray_head(folder, new_port, options, port=port, **env) as head:
        yield head
