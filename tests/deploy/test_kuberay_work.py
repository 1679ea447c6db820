"""deploy/kuberay: volumes, the commands of the job, the service, and the page about them."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from lrem.config import Config, load_config
from ray_apps.cluster.session import worker_env
from tests.deploy.kuberay import (
    CLAIMS,
    FOLDER,
    IN_IMAGE,
    RAY_CLUSTER,
    RAY_JOB,
    RAY_SERVICE,
    ROOT,
    SCHEMA,
    SPECS,
    check_offered,
    each_cluster,
    groups,
    pods,
)


@each_cluster
def test_volumes_are_claims_whose_access_mode_fits_the_number_of_pods(spec: dict[str, Any]) -> None:
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
    """Return the commands that the entrypoint runs, through the submitter's shell, Ray's command line and its shell."""
    words = shlex.split(RAY_JOB["spec"]["entrypoint"])  # KubeRay appends it unchanged to `ray job submit … --`
    calls = tmp_path / "calls"
    program = tmp_path / "lrem"
    refuse = "case $* in *--resume*) exit 1 ;; esac"
    program.write_text(f'#!/bin/sh\necho "$@" >>{calls}\n{"" if resumable else refuse}\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", shlex.join(words)], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split() for line in calls.read_text().splitlines()]


def test_the_job_resumes_if_it_can_and_starts_if_it_cannot(tmp_path: Path) -> None:
    [resumed] = job_commands(tmp_path, resumable=True)
    (tmp_path / "calls").unlink()
    [refused, started] = job_commands(tmp_path, resumable=False)
    assert resumed == refused == [*started, "--resume"]
    assert started[0] == "cold-start"


def test_the_job_is_a_valid_command(tmp_path: Path) -> None:
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
    check_offered(settings["placement"], RAY_JOB["spec"]["rayClusterSpec"])
    gpus = sum(
        group["maxReplicas"]
        for name, group in groups(RAY_JOB["spec"]["rayClusterSpec"])
        if settings["placement"]["training"].keys() <= group.get("resources", {}).keys()
    )
    assert settings["cold_start"]["workers"] == settings["ray"]["gpus"] <= gpus  # one a machine


@pytest.fixture
def served() -> tuple[ServeDeploySchema, Config]:
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(RAY_SERVICE["spec"]["serveConfigV2"]))
    [application] = deployed.applications
    file = Path(application.args["config"].replace(IN_IMAGE, f"{ROOT}/"))
    return deployed, load_config(file, application.args["settings"])


def test_the_service_is_an_existing_application(served: tuple[ServeDeploySchema, Config]) -> None:
    deployed, config = served
    [application] = deployed.applications
    module, _, function = application.import_path.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert application.runtime_env["env_vars"] == worker_env()
    assert str(config.run_dir).startswith("/shared/")
    assert config.serve.reasoner.gpus == 1  # the default would be 0 while no GPU machine runs
    check_offered(config.placement.model_dump(), SPECS["rayservice"])


def test_the_service_listens_on_its_pods_network_and_has_keys(served: tuple[ServeDeploySchema, Config]) -> None:
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
    assert config.serve.index_nodes == []  # the default: the machine that builds the application, the head
    assert float(head_container()["resources"]["limits"]["cpu"]) > config.serve.shards * config.serve.shard.cpus
    # only one pod can mount that disk, and a second cluster would have a head too
    assert RAY_SERVICE["spec"]["upgradeStrategy"] == {"type": "None"}


def head_container() -> dict[str, Any]:
    [container] = SPECS["rayservice"]["headGroupSpec"]["template"]["spec"]["containers"]
    return dict(container)


def mounts(group: dict[str, Any]) -> dict[str, str]:
    [container] = group["template"]["spec"]["containers"]
    return {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_page_names_what_exists() -> None:
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


def test_the_jobs_of_the_page_request_what_the_cluster_offers() -> None:
    page = (ROOT / "docs/kubernetes.md").read_text()
    jobs = [line.split() for line in re.findall(r"^    run (\w.*)$", page, re.MULTILINE)]
    assert [words[0] for words in jobs] == ["world", "curate", "cold-start", "reinforce", "embed", "index"]
    for words in jobs:
        settings = [word for word in words if "=" in word]
        config = load_config(ROOT / "configs/demo.yaml", settings)
        if any(word.startswith("placement.") for word in settings):
            check_offered(config.placement.model_dump(), SPECS["raycluster"])
