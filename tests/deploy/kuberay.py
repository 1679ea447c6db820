"""The manifests of deploy/kuberay, parsed, and what several tests ask of them."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kuberay"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
SCHEMA = Draft202012Validator(json.loads((ROOT / "tests/data/kuberay.schema.json").read_text()))
CLUSTER = yaml.safe_load((ROOT / "cluster.yaml").read_text())
IN_IMAGE = "/srv/lrem/"


def read(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return manifest


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
    """Yield the head and the worker groups by their names in cluster.yaml; a pod's name may not have underscores."""
    yield "head", spec["headGroupSpec"]
    for group in spec["workerGroupSpecs"]:
        yield group["groupName"].replace("-", "_"), group


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, spec in SPECS.items():
        for name, group in groups(spec):
            yield f"{kind} {name}", group["template"]
    yield "submitter", RAY_JOB["spec"]["submitterPodTemplate"]


each_pod = pytest.mark.parametrize("pod", [pod for _, pod in pods()], ids=[name for name, _ in pods()])


def check_offered(placement: dict[str, Any], spec: dict[str, Any]) -> None:
    """Check that groups offer all resources that the settings request."""
    kinds = [placement[kind] for kind in ("data", "training", "rollouts", "reasoner")]
    requested = {name for kind in kinds for name in kind}
    assert requested
    assert requested <= {name for _, group in groups(spec) for name in group.get("resources", {})}
