"""Joining Ray: the cluster of this job, one that is named, or a local one for this command alone."""

import atexit
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import ray
from ray.data import DataContext

from lrem.config import Config
from lrem.errors import ConfigError, DataError
from ray_apps.cluster.progress import console

SHARES = (0.6, 0.4)  # of a GPU that a training worker and an engine share


def worker_env() -> dict[str, str]:
    """Environment of every worker: quiet engines, and vLLM within its actor."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the actor itself: loads in 2 s, not 26
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_V2": "1",
    }


def gpu_count(config: Config) -> int:
    """GPUs to plan with: `ray.gpus`, or those that the cluster has now."""
    found = int(ray.cluster_resources().get("GPU", 0))
    return found if config.ray.gpus is None else config.ray.gpus


class GpuPlan(NamedTuple):
    """How many training workers there will be, and the GPUs of each worker and of each of an engine's ranks."""

    workers: int
    worker: float
    engine: float

    @property
    def shared(self) -> bool:
        """Whether a worker and an engine live on one GPU."""
        return 0 < self.worker < 1


def gpu_plan(config: Config, workers: int, engines: int, tensor_parallel: int = 1) -> GpuPlan:
    """How GPUs are dealt out; without one all actors run on CPUs.

    With fewer GPUs than actors, or where placement.share_gpus says so, a worker and a vLLM actor share one. There are
    never more workers than GPUs, nor two on one, which NCCL refuses: each takes more than half. With `tensor_parallel`
    above 1 nothing is shared, and an engine takes so many GPUs.

    Raises:
        DataError: not even that fits.
    """
    gpus = gpu_count(config)
    needed = workers + engines * tensor_parallel
    share = config.placement.share_gpus
    if share and tensor_parallel > 1:
        raise DataError("placement.share_gpus=true shares single GPUs: set rollout.tensor_parallel=1, or unset it")
    if gpus == 0 or (gpus >= needed and not (share and workers and engines)):
        return GpuPlan(workers, float(gpus > 0), float(gpus > 0))
    if share is False:
        raise DataError(
            f"{workers} workers and {engines} vLLM actors need {needed} GPUs of their own, there are {gpus}: lower "
            "workers or rollout.actors, or unset placement.share_gpus"
        )
    if tensor_parallel > 1:
        raise DataError(
            f"{workers} workers and {engines} vLLM actors of {tensor_parallel} GPUs need {needed}, there are {gpus}: "
            "lower workers, rollout.actors or rollout.tensor_parallel"
        )
    if engines == 0:  # two ranks on one GPU are refused by NCCL, and fewer ranks would be another batch
        raise DataError(
            f"{workers} workers and {gpus} GPUs: set workers to {gpus} at most, or ray.gpus to what can come"
        )
    workers = min(workers, gpus)
    if workers + engines > 2 * gpus:
        raise DataError(f"{workers} workers and {engines} vLLM actors on {gpus} GPUs: lower rollout.actors")
    console.print(f"{gpus} GPUs: {workers} training workers, each sharing its GPU with a vLLM actor", highlight=False)
    return GpuPlan(workers, *SHARES)


@contextmanager
def _serving(config: Config) -> Iterator[None]:
    """How Ray Serve works in a Ray that is started meanwhile: only its processes inherit this, not we.

    One event loop a replica, and log lines that are written together: less of a request's time goes into Serve itself.
    """
    wanted = {
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    }
    if config.ray.haproxy:
        folder = tempfile.mkdtemp(prefix="lrem-haproxy-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        wanted |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _quieten() -> None:
    """No bars of transformers'. It is not loaded for this: that takes seconds, and not all stages need it."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if bars := sys.modules.get("transformers.utils.logging"):
        bars.disable_progress_bar()


def ray_address(config: Config, default: str) -> str:
    """Where Ray is: ray.address, RAY_ADDRESS, or `default`.

    Raises:
        ConfigError: that is the address of the jobs API, which takes jobs and nothing else.
    """
    address = config.ray.address or os.environ.get("RAY_ADDRESS") or default
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} takes jobs: run this as `ray job submit --working-dir . -- lrem …`, or, on a machine of the "
            "cluster, set ray.address to HOST:6379 (auto: the cluster of this machine) or unset RAY_ADDRESS"
        )
    return address


@contextmanager
def cluster(config: Config) -> Iterator[None]:
    """Connect for the length of a block; what this block started, it stops. Re-entrant."""
    if ray.is_initialized():
        yield
        return
    address = ray_address(config, "local")
    options: dict[str, Any] = {}
    if address == "local":
        options = {
            "num_cpus": config.ray.num_cpus,
            "object_store_memory": config.ray.object_store_mb * 2**20,
            "include_dashboard": False,
        }
    terminate = signal.getsignal(signal.SIGTERM)
    with _serving(config) if address == "local" else nullcontext():
        ray.init(
            address,
            runtime_env={"env_vars": worker_env()},
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
            **options,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # Ray has put an aborting handler in its place
    _quieten()
    data = DataContext.get_current()
    data.enable_progress_bars = False  # each stage draws its own
    data.use_datasource_v2 = False  # it starts actors to list files: 8 s a read on two cores, against 0.1 s
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
