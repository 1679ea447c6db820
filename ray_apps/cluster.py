"""Joining Ray: the cluster of this job, one that is named, or a local one for this command alone."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
import transformers
from ray.data import DataContext

from lrem.config import Config


def worker_env() -> dict[str, str]:
    """Environment of every worker: quiet, offline-safe engines, and the CPU paths where there is no GPU."""
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in the actor itself: loads in 2 s, not 26
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_V2": "1",
    }
    return env | ({} if torch.cuda.is_available() else {"DS_ACCELERATOR": "cpu"})


@contextmanager
def cluster(config: Config) -> Iterator[None]:
    """Connect for the length of a block; what this block started, it stops. Re-entrant."""
    if ray.is_initialized():
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {}
    if address == "local":
        options = {
            "num_cpus": config.ray.num_cpus,
            "object_store_memory": config.ray.object_store_mb * 2**20,
            "include_dashboard": False,
        }
    ray.init(
        address,
        runtime_env={"env_vars": worker_env()},
        log_to_driver=bool(os.environ.get("LREM_DEBUG")),
        logging_level="INFO",
        configure_logging=False,
        **options,
    )
    transformers.utils.logging.disable_progress_bar()
    DataContext.get_current().enable_progress_bars = False  # each stage draws its own
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
