"""How many CPU threads a training worker uses.

Ray sets OMP_NUM_THREADS to the CPUs that an actor asks for. These are only a count, and ours ask for one.
"""

import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": two cores; "max 100000": no limit


def worker_threads(workers: int, limit: Path = CGROUP_LIMIT) -> int:
    """Return the threads of each of `workers` on this machine: its usable cores, shared evenly, at least one each."""
    return max(1, usable_cores(limit) // workers)


def usable_cores(limit: Path = CGROUP_LIMIT) -> int:
    """Return the cores that this process may use; in a container at most its CPU limit, rounded down."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = limit.read_text().partition(" ") if limit.exists() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
