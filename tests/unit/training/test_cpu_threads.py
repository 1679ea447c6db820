"""How a training worker uses a CPU: the cores that it may use, in a container too, shared; and its allocator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_apps.training.cpu_threads import training_env, usable_cores, worker_threads

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize("text", ["max 100000\n", "100000000 100000\n", None], ids=["no limit", "a high one", "none"])
def test_without_a_limit_all_cores_are_shared(tmp_path: Path, text: str | None) -> None:
    limit = tmp_path / "cpu.max"
    if text:
        limit.write_text(text)
    assert usable_cores(limit) == CORES
    assert [worker_threads(n, limit) for n in (1, 2, 10**6)] == [CORES, max(1, CORES // 2), 1]


def test_a_container_uses_what_it_may(tmp_path: Path) -> None:
    limit = tmp_path / "cpu.max"
    limit.write_text("150000 100000\n")
    assert usable_cores(limit) == 1
    limit.write_text("50000 100000\n")
    assert usable_cores(limit) == 1


def test_a_worker_allocates_with_jemalloc() -> None:
    """A wrong name only makes the loader warn, and a wrong option only jemalloc."""
    code = "print('libjemalloc' in open('/proc/self/maps').read())"
    worker = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | training_env(jemalloc=True),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (worker.stdout, worker.stderr) == ("True\n", "")
    assert training_env(jemalloc=False) == {"OMP_WAIT_POLICY": "passive"}
