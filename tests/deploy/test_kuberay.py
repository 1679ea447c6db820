"""deploy/kuberay: valid for KubeRay, Kubernetes and Ray, and the same cluster as cluster.yaml.

Neither Kubernetes nor Docker is available here: what can be checked without them is checked.
"""

import copy
import re
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from tests.deploy.kuberay import (
    CLAIMS,
    CLUSTER,
    FOLDER,
    PROJECT,
    RAY_CLUSTER,
    RAY_JOB,
    RAY_SERVICE,
    SCHEMA,
    SPECS,
    each_cluster,
    each_pod,
    groups,
    pinned,
    pods,
)

MACHINES = {"m6i.2xlarge": (8, 32, 0), "m6i.4xlarge": (16, 64, 0), "g6e.4xlarge": (16, 128, 1)}  # CPUs, GiB, GPUs
KUBERNETES = ("1.30", "1.37")  # the oldest and the newest that the pods are checked against


@pytest.mark.parametrize("manifest", [RAY_CLUSTER, RAY_JOB, RAY_SERVICE], ids=lambda manifest: manifest["kind"])
def test_a_manifest_is_valid_for_kuberay(manifest: dict[str, Any]) -> None:
    SCHEMA.validate(manifest)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["authOptions", "mode"], "tokens"),
        (["autoscalerOptions", "version"], "v3"),
        (["autoscalerOption"], {}),
        (["headGroupSpec", "rayStartParams"], {"num-cpus": 4}),
        (["workerGroupSpecs", 0, "resources"], {"lrem_data": 1000}),
        (["workerGroupSpecs", 0, "groupName"], "cpu_spot"),
        (["workerGroupSpecs", 0, "maxReplicas"], -1),
    ],
)
def test_the_schema_refuses_what_kuberay_refuses(path: list[Any], value: Any) -> None:
    wrong = copy.deepcopy(RAY_CLUSTER)
    place = wrong["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        SCHEMA.validate(wrong)


@each_pod
@pytest.mark.parametrize("version", KUBERNETES)
def test_a_pod_is_valid_for_kubernetes(pod: dict[str, Any], version: str) -> None:
    whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
    kubernetes_validate.validate(whole, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_claims_are_valid_for_kubernetes(version: str) -> None:
    for claim in CLAIMS.values():
        kubernetes_validate.validate(claim, version, strict=True)


@each_cluster
def test_the_rules_of_the_operator_beyond_its_schema(spec: dict[str, Any]) -> None:
    """Those rules of KubeRay's controllers/ray/utils/validation.go that concern what the manifests use."""
    for _, group in groups(spec):
        # Present, or the operator would write to a missing map; empty, since `resources` excludes the rest, and CPUs,
        # memory and GPUs come from the limits of the pod.
        assert group["rayStartParams"] == {}
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"  # autoscaler v2 requires it
        assert group["template"]["spec"]["containers"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token", "secretName": "lrem-token"}
    assert spec["rayVersion"] == pinned("ray")  # required with a token
    job = RAY_JOB["spec"]
    assert job["shutdownAfterJobFinishes"] or not job["ttlSecondsAfterFinished"]
    assert job["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"


@each_cluster
def test_the_groups_are_the_node_types_of_cluster_yaml(spec: dict[str, Any]) -> None:
    """As Ray's own autoscaler reads both."""
    manifest = {"metadata": {"name": "lrem", "namespace": "lrem"}, "spec": spec}
    config = _derive_autoscaling_config_from_ray_cr(manifest)
    assert config["idle_timeout_minutes"] == CLUSTER["idle_timeout_minutes"]
    for name, group in groups(spec):
        theirs = config["available_node_types"]["headgroup" if name == "head" else group["groupName"]]
        ours = CLUSTER["available_node_types"][name]
        own = {key: count for key, count in theirs["resources"].items() if key.startswith("lrem_")}
        assert own == ours["resources"]
        assert theirs["resources"].get("GPU", 0) == MACHINES[ours["node_config"]["InstanceType"]][2]
        bounds = ("min_workers", "max_workers", "priority")
        assert [theirs.get(key, 0) for key in bounds] == [ours.get(key, 0) for key in bounds]


def test_which_groups_each_manifest_has() -> None:
    every = set(CLUSTER["available_node_types"])
    assert {name for name, _ in groups(SPECS["raycluster"])} == every
    assert SPECS["rayjob"] == SPECS["raycluster"]
    assert {name for name, _ in groups(SPECS["rayservice"])} == {name for name in every if not name.endswith("_spot")}


@each_cluster
def test_groups_named_spot_run_on_spot_machines(spec: dict[str, Any]) -> None:
    for name, group in groups(spec):
        pod, spot = group["template"]["spec"], name.endswith("_spot")
        assert pod["nodeSelector"] == {"lrem-capacity": "spot" if spot else "on-demand"}
        tolerated = {one["key"] for one in pod.get("tolerations", [])}
        assert tolerated == ({"lrem-capacity"} if spot else set()) | ({"nvidia.com/gpu"} if "gpu" in name else set())


@each_cluster
def test_a_pod_leaves_an_eighth_of_its_machine_free(spec: dict[str, Any]) -> None:
    beside = spec["autoscalerOptions"]["resources"]["limits"]
    assert beside == {"cpu": "500m", "memory": "1Gi"}  # in the head's pod
    for name, group in groups(spec):
        [container] = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        cpus, gib, _ = MACHINES[CLUSTER["available_node_types"][name]["node_config"]["InstanceType"]]
        assert float(limits["cpu"]) + (0.5 if name == "head" else 0) <= cpus * 7 / 8
        assert float(limits["memory"].removesuffix("Gi")) + (1 if name == "head" else 0) <= gib * 7 / 8


@each_pod
def test_requests_are_limits(pod: dict[str, Any]) -> None:
    for container in pod["spec"]["containers"]:
        assert container["resources"]["requests"] == container["resources"]["limits"]


@each_pod
def test_pods_are_restricted(pod: dict[str, Any]) -> None:
    """As the Pod Security Standard `restricted` requires."""
    spec = pod["spec"]
    assert spec["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000}.items()
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not any("hostPort" in port for port in container.get("ports", []))


def test_no_port_is_open_outside_the_cluster() -> None:
    text = "".join(file.read_text() for file in FOLDER.glob("*.yaml"))
    assert not re.search("NodePort|LoadBalancer|ExternalName|Ingress", text)
    assert {spec["headGroupSpec"]["serviceType"] for spec in SPECS.values()} == {"ClusterIP"}
    assert "kind: Secret" not in text  # secrets are created by hand and only named here
    assert {one["name"] for _, pod in pods() for box in pod["spec"]["containers"] for one in box.get("env", [])} == {
        "HF_HOME",
        "RAY_JOB_STOP_WAIT_TIME_S",
    }


@each_pod
def test_the_image_is_this_version_with_the_pinned_ray(pod: dict[str, Any]) -> None:
    [container] = pod["spec"]["containers"]
    extra = "gpu" if "nvidia.com/gpu" in container["resources"]["limits"] else "cpu"
    assert container["image"] == f"registry.example/lrem:{PROJECT['version']}-ray{pinned('ray')}-{extra}"
