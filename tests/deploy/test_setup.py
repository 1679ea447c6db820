"""scripts/setup.sh on unsuitable machines prints one line that says what to do, and creates no .venv."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/setup.sh")
# All programs that the script calls before it installs; a test adds or fakes others.
TOOLS = ("bash", "cat", "cut", "dirname", "flock", "grep", "rm", "sha256sum", "uname")


class Machine:
    """A copy of the inputs of the set-up, and a PATH with only the programs of the test."""

    def __init__(self, folder: Path) -> None:
        self.project, self.bin = folder / "project", folder / "bin"
        (self.project / "scripts").mkdir(parents=True)
        self.bin.mkdir()
        for name in INPUTS:
            shutil.copy(ROOT / name, self.project / name)
        for tool in TOOLS:
            self.add(tool, f'exec {shutil.which(tool)} "$@"')
        self.add("python3.11", f'exec {sys.executable} "$@"')
        self.add("c++", "exit 0")
        self.add("df", "echo Filesystem; echo /dev/disk 999999999 1 900000000 1% /")

    def add(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        path.chmod(0o755)

    def remove(self, name: str) -> None:
        (self.bin / name).unlink()

    def setup(self, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "scripts/setup.sh"],
            cwd=self.project,
            env={"PATH": str(self.bin), "HOME": os.environ.get("HOME", "/")} | env,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def refusal(self, **env: str) -> str:
        """Return the only line of a set-up that has to fail."""
        done = self.setup(**env)
        lines = done.stderr.splitlines()
        assert done.returncode != 0
        assert len(lines) == 1, done.stderr
        return lines[0]

    def finished(self, extra: str = "cpu") -> None:
        """Create a .venv as a finished set-up does."""
        (self.project / ".venv/bin").mkdir(parents=True)
        command = self.project / ".venv/bin/lrem"
        command.touch()
        command.chmod(0o755)
        content = f"{self.project}\n".encode() + b"".join((self.project / n).read_bytes() for n in INPUTS)
        (self.project / ".venv/.stamp").write_text(f"{extra} {hashlib.sha256(content).hexdigest()}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_no_compiler(machine: Machine) -> None:
    machine.remove("c++")
    assert "a C++ compiler is needed: install one" in machine.refusal()
    assert not (machine.project / ".venv").exists()


def test_wrong_python(machine: Machine) -> None:
    machine.remove("python3.11")
    machine.add("python3", "echo 3.9")
    line = machine.refusal()
    assert "Python 3.11 is needed, python3 is 3.9: install python3.11, or name one with PYTHON=" in line


def test_no_python(machine: Machine) -> None:
    machine.remove("python3.11")
    assert "Python 3.11 is needed, python3 is not usable" in machine.refusal()


def test_no_other_python_replaces_the_named_one(machine: Machine) -> None:
    machine.add("my python", "echo 3.13")
    assert "my python is 3.13" in machine.refusal(PYTHON=str(machine.bin / "my python"))


def test_python_without_venv(machine: Machine) -> None:
    machine.add("python3.11", '[[ $2 == *ensurepip* ]] && exit 1; echo "3.11"')
    assert "apt-get install python3.11-venv" in machine.refusal()


@pytest.mark.parametrize(("gpu", "need"), [(False, 5), (True, 14)])
def test_full_disk(machine: Machine, gpu: bool, need: int) -> None:
    machine.add("df", f"echo Filesystem; echo /dev/disk 9 9 {need * 1024**2 - 1} 99% /")
    if gpu:
        machine.add("nvidia-smi", "exit 0")
    line = machine.refusal()
    assert f"has {need - 1} GB free and the installation needs {need} GB" in line


def test_unsupported_platform(machine: Machine) -> None:
    machine.add("uname", "case $1 in -s) echo Darwin;; *) echo arm64;; esac")
    assert "vLLM has no wheel for Darwin arm64: use Linux" in machine.refusal()


def test_a_finished_setup_is_not_repeated(machine: Machine) -> None:
    machine.finished()
    machine.remove("c++")  # nothing is checked or run again
    done = machine.setup()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("change", ["interrupted", "other lock", "gpu appeared", "no stamp"])
def test_a_stale_or_unfinished_setup_is_repeated(machine: Machine, change: str) -> None:
    machine.finished()
    machine.remove("c++")
    if change == "interrupted":
        (machine.project / ".venv/.unfinished").touch()
    elif change == "other lock":
        (machine.project / "constraints.txt").write_text("torch==1.0\n")
    elif change == "gpu appeared":
        machine.add("nvidia-smi", "exit 0")
    else:
        (machine.project / ".venv/.stamp").unlink()
    assert "compiler" in machine.refusal()


def test_a_failed_installation_shows_its_log_and_stays_unfinished(machine: Machine) -> None:
    for tool in ("find", "mkdir", "tail", "touch"):
        machine.add(tool, f'exec {shutil.which(tool)} "$@"')
    # A pip that cannot reach any index.
    done = machine.setup(PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull, PIP_RETRIES="0")
    assert done.returncode != 0
    assert "ERROR: " in done.stderr  # from pip
    last = done.stderr.splitlines()[-1]
    assert f"the whole log is in {machine.project}/.venv/setup.log" in last
    assert (machine.project / ".venv/.unfinished").exists()
    assert not (machine.project / ".venv/.stamp").exists()
