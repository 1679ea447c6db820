"""The search service: one Ray Serve application of ingress, reasoner, embedder and index shards.

    Ingress (HTTP) → Reasoner (vLLM) → Embedder (transformers) → IndexShard 0 … S-1 (Faiss) → Ingress joins

Knows how it is deployed, started and stopped; each part has a module of its own, and api.py is the contract.
"""

import logging
import re
import socket
import time
from typing import Any

import httpx
import torch
from ray import serve

from lrem.config import Config
from lrem.index.snapshot import read_manifest
from lrem.model import fingerprint
from ray_apps.index_shard import IndexShard
from ray_apps.ingress import Ingress
from ray_apps.replicas import Embedder, Reasoner

APP = "lrem"
ONGOING = 256  # requests a replica holds; Serve's default of 5 would never fill a batch


def _deployment(replica: type, cpus: float, gpus: int = 0, name: str | None = None) -> serve.Deployment:
    return serve.deployment(
        replica,
        name=name or replica.__name__,
        max_ongoing_requests=ONGOING,
        max_constructor_retry_count=1,  # another model's snapshot is the same at the second attempt
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )


def build(config: Config) -> serve.Application:
    """The application, ready for `serve.run` inside an initialised Ray.

    Raises:
        FileNotFoundError: there is no trained model at `paths.model`.
        SnapshotError: there is no index at `paths.index`, or it is another model's.
    """
    folder, index = str(config.path("model")), str(config.path("index"))
    model, count = fingerprint(config.path("model")), config.serve.shards
    read_manifest(config.path("index"), model)  # replicas check everything, but only after a slow start
    reasoner = _deployment(Reasoner, 1, gpus=1 if torch.cuda.is_available() else 0)
    shards = [_deployment(IndexShard, 0.5, name=f"IndexShard{i}").bind(index, model, i, count) for i in range(count)]
    return _deployment(Ingress, 0.1).bind(
        model,
        config.serve.timeout_s,
        reasoner.bind(folder, model, config.rollout),
        _deployment(Embedder, 1).bind(folder, model),
        shards,
        config.serve.examples,
    )


def start(config: Config) -> str:
    """Deploy the application in the current Ray, wait until it answers, return its base address.

    An application that already runs is replaced in place.

    Raises:
        FileNotFoundError, SnapshotError: as `build`.
        ConnectionError: the port is taken, or a deployment cannot start (its own error is in the message).
        TimeoutError: not ready within ray.start_timeout_s; the message names what was missing.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its steps are no news to the user
    application = build(config)
    host, port = config.serve.host, config.serve.port
    before = serve.status()
    if not before.proxies:  # a running Serve holds its port itself
        require_free(host, port)
    address = base_url(config)
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run_many([serve.RunTarget(application, name=APP)], wait_for_applications_running=False)
        _wait_until_ready(address, config.ray.start_timeout_s)
    except BaseException:
        if APP not in before.applications:
            stop()
        raise
    return address


def base_url(config: Config) -> str:
    """Where this machine reaches the application."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.serve.host, config.serve.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.serve.port}"


def stop() -> None:
    """Take the application down, and Serve with it unless other applications run there."""
    if APP in serve.status().applications:
        serve.delete(APP)
    if not serve.status().applications:
        serve.shutdown()


def require_free(host: str, port: int) -> None:
    """Raises ConnectionError where something listens on the port already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConnectionError(
                f"cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or pass serve.port=…"
            ) from error


def _wait_until_ready(address: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    state = serve.status().applications[APP]
    while time.monotonic() < deadline:
        if state.status == "DEPLOY_FAILED":
            raise ConnectionError(f"the serving application did not start: {_cause(state)}")
        if state.status == "RUNNING" and _answers(address):
            return
        time.sleep(0.2)
        state = serve.status().applications[APP]
    waiting = [name for name, part in state.deployments.items() if part.status != "HEALTHY"]
    missing = " and ".join(waiting) or f"an answer from {address}/healthz"
    raise TimeoutError(f"waited {timeout_s:.0f} s for {missing}: look at `ray status` for what is missing")


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _cause(state: Any) -> str:
    """The error of the first deployment that failed: the last line of its traceback that names an exception."""
    for name, part in state.deployments.items():
        if part.status == "DEPLOY_FAILED":
            errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): .*", part.message, re.MULTILINE)
            return f"{name}: {errors[-1] if errors else part.message}"
    return str(state.message)
