"""scripts/packages.sh with and without a browser, Prometheus, a package manager, and root."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/packages.sh"
APT = "update; install -y --no-install-recommends {}; "
BOTH = APT.format("chromium") + APT.format("prometheus")


@pytest.mark.parametrize(
    ("tools", "message", "calls"),
    [
        ({"chromium": "", "prometheus": ""}, "", ""),
        ({"id": "echo 0", "apt-get": 'echo -n "$*; " >>calls'}, "packages: installing Debian's chromium", BOTH),
        (
            {"google-chrome": "", "id": "echo 0", "apt-get": 'echo -n "$*; " >>calls'},
            "packages: installing Debian's prometheus",
            APT.format("prometheus"),
        ),
        (
            {"id": "echo 0", "apt-get": 'echo -n "$*; " >>calls; exit 100'},
            "packages: apt-get failed",
            "update; update; ",
        ),
        ({"id": "echo 1000", "apt-get": "exit 1"}, "the pages are not tested: install chromium (Debian, Ubuntu:", ""),
        ({"chromium": "", "id": "echo 0"}, "metrics are not tested: install prometheus", ""),
    ],
)
def test_it_installs_what_is_missing_or_says_what_to_install(
    tools: dict[str, str], message: str, calls: str, tmp_path: Path
) -> None:
    """With only the named programs on the PATH it never fails: the tests decide what a missing browser means."""
    bash = shutil.which("bash")
    real = {name: f'exec {shutil.which(name)} "$@"' for name in ("mktemp", "rm", "tail")}
    for name, script in (real | tools).items():
        (tmp_path / name).write_text(f"#!{bash}\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [str(bash), str(SCRIPT)],
        cwd=tmp_path,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    assert message in done.stdout + done.stderr
    assert bool(done.stdout + done.stderr) == bool(message)
    log = tmp_path / "calls"
    assert (log.read_text() if log.exists() else "") == calls
