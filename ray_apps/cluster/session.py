"""Connect to Ray: the cluster of this job, a named one, or a local one for this command alone."""

import atexit
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.data import DataContext

from lrem.config import Config
from lrem.errors import ConfigError

CONNECT_S = 10.0  # for the first answer of a cluster


def worker_env() -> dict[str, str]:
    """Return the environment of every worker: quiet engines, and vLLM inside its actor's process."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine runs in the actor: it loads in 2 s instead of 26
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_V2": "1",
    }


def ray_address(config: Config, default: str) -> str:
    """Return Ray's address: `ray.address`, RAY_ADDRESS, or `default`. Another machine's must accept connections.

    Raises:
        ConfigError: it is the address of the jobs API, which only accepts jobs.
        ConnectionError: nothing answers there.
    """
    address = config.ray.address or os.environ.get("RAY_ADDRESS") or default
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address} is the jobs API and only accepts jobs: run `ray job submit --working-dir . -- lrem …`, or, on "
            "a machine of the cluster, set ray.address=HOST:6379 (auto: this machine's cluster) or unset RAY_ADDRESS"
        )
    if address not in ("auto", "local"):
        _require_answer(address, min(CONNECT_S, config.ray.start_timeout_s))
    return address


def _require_answer(address: str, timeout_s: float) -> None:
    """Check that something accepts connections at HOST:PORT or ray://HOST:PORT: ray.init waits minutes for nothing."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise ConfigError(f"'{address}' is not an address of Ray: write HOST:6379 in ray.address or RAY_ADDRESS")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() >= deadline:
                raise ConnectionError(
                    f"no Ray cluster answers at {address} within {timeout_s:g} s ({error}): start it with `ray start "
                    "--head`, or change ray.address or RAY_ADDRESS"
                ) from error
        time.sleep(min(1.0, timeout_s))


@contextmanager
def cluster(config: Config) -> Iterator[None]:
    """Connect to Ray during a block, and stop what the block started. Re-entrant."""
    if ray.is_initialized():
        yield
        return
    address = ray_address(config, "local")
    options: dict[str, Any] = {}
    if address == "local":
        # it announces that only this user can join the Ray that is started here
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        options = {
            "num_cpus": config.ray.num_cpus,
            "object_store_memory": config.ray.object_store_mb * 2**20,
            "include_dashboard": False,
        }
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    with _serve_environment(config) if address == "local" else nullcontext():
        ray.init(
            address,
            runtime_env={"env_vars": worker_env()},
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=False,
            **options,
        )
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, sigterm_handler)  # ray.init has replaced it with one that aborts
    _silence_libraries()
    try:
        yield
    finally:
        ray.shutdown()


def _silence_libraries() -> None:
    data = DataContext.get_current()
    data.enable_progress_bars = False  # each stage draws its own
    data.use_datasource_v2 = False  # it starts actors to list files: 8 s per read on two cores, against 0.1 s
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # transformers is not imported for this: that takes seconds, and not every stage needs it
    if transformers_logging := sys.modules.get("transformers.utils.logging"):
        transformers_logging.disable_progress_bar()


@contextmanager
def _serve_environment(config: Config) -> Iterator[None]:
    """Set Ray Serve's options for a Ray that is started in the block; our own environment is restored after it.

    One event loop per replica and buffered log lines: less of each request's time is spent in Serve itself.
    """
    options = {
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    } | (_haproxy_options() if config.ray.haproxy else {})
    before = {name: os.environ.get(name) for name in options}
    os.environ.update({name: value for name, value in options.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]


def _haproxy_options() -> dict[str, str]:
    folder = tempfile.mkdtemp(prefix="lrem-haproxy-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
