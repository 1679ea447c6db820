"""How a training worker uses a CPU: its threads and its memory allocator.

Ray sets OMP_NUM_THREADS to the CPUs that an actor asks for. These are only a count, and ours ask for one.
"""

import os
from pathlib import Path

import ray

CGROUP_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": two cores; "max 100000": no limit

# free blocks are kept for three seconds: much longer, and they fill the memory
MALLOC_CONF = "oversize_threshold:0,dirty_decay_ms:3000,muzzy_decay_ms:0,thp:always,metadata_thp:auto"


def worker_threads(workers: int, limit: Path = CGROUP_LIMIT) -> int:
    """Return the threads of each of `workers` on this machine: its usable cores, shared evenly, at least one each."""
    return max(1, usable_cores(limit) // workers)


def usable_cores(limit: Path = CGROUP_LIMIT) -> int:
    """Return the cores that this process may use; in a container at most its CPU limit, rounded down."""
    cores = len(os.sched_getaffinity(0))
    quota, _, period = limit.read_text().partition(" ") if limit.exists() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def training_env(jemalloc: bool) -> dict[str, str]:
    """Return the environment variables of a training worker.

    Threads that spin between two operations take the other workers' cores.

    Args:
        jemalloc: allocate with the jemalloc that Ray brings along: on a CPU every step allocates and frees the same
            large blocks, each time of a slightly different size. The library is named by its path on this machine, so
            only where all workers are on it.
    """
    library = Path(ray.__file__).parent / "core" / "libjemalloc.so"
    variables = {"OMP_WAIT_POLICY": "passive"}
    if jemalloc and library.exists():
        preloaded = os.environ.get("LD_PRELOAD")
        variables["LD_PRELOAD"] = f"{library}:{preloaded}" if preloaded else str(library)
        variables["MALLOC_CONF"] = MALLOC_CONF
    return variables
