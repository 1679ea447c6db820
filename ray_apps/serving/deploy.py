"""The search service on Ray Serve: started, replaced without a failed request, and stopped.

    Ingress (HTTP) → Reasoner (vLLM) → Embedder (transformers) → IndexShard 0 … S-1 (Faiss) → Ingress joins

The ingress has the route; the parts of a generation (parts.py) run beside it, and it asks those that are live
(live.py, replacing.py). api.py is the contract.
"""

import hashlib
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.context import _get_global_client

from lrem.config import Config, load_config
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.progress import console
from ray_apps.serving import generation, live_record, rollover
from ray_apps.serving.auth import Scope, read_keys, require_loopback
from ray_apps.serving.generation import NAME, Plan
from ray_apps.serving.ingress import Ingress
from ray_apps.serving.live_record import Generation
from ray_apps.serving.search_backend import Parts

POLL_S = 0.2


def application(args: dict[str, Any]) -> serve.Application:
    """Everything as one Serve application, for `serve deploy configs/serve.yaml`.

    Args:
        args: `config`, a file of settings; `settings`, a list of dotted.key=value.

    Raises:
        ConfigError, FileNotFoundError, SnapshotError: as `start`.
    """
    file = args.get("config")
    config = load_config(Path(file) if file else None, list(args.get("settings", ())))
    if not config.serve.index_nodes:  # Serve builds this on any machine; shards stay on the head, with their folder
        [head] = [node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" in node["Resources"]]
        config = config.model_copy(
            update={"serve": config.serve.model_copy(update={"index_nodes": [head["NodeManagerAddress"]]})}
        )
    keys = _keys(config)
    _require_guarded(keys)
    return _ingress(config, keys, generation.build(config, generation.plan(config)))


def start(config: Config) -> str:
    """Deploy the application in the current Ray, wait until it answers, return its base address.

    Where it runs already with another model, index or settings, the new parts are started beside the old ones, take
    over what was written to those, and take their place.

    Raises:
        FileNotFoundError, SnapshotError: as `parts.plan`.
        ConfigError: the address can be reached by others and there are no keys, or a machine is not in the cluster.
        DataError: the cluster will never have room for it.
        ConnectionError: the port is taken, or a deployment cannot start (its own error is in the message).
        TimeoutError: not ready within ray.start_timeout_s; the message names what was missing.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its steps are no news to the user
    keys, planned, before = _keys(config), generation.plan(config), serve.status()
    if not before.proxies:  # a running Serve holds its port itself
        require_free(config.serve.host, config.serve.port)
    address, old = base_url(config), live_record.read() if NAME in before.applications else None
    if planned.name not in before.applications:
        wait_for_resources(generation.needs(config, planned), "the service", config.ray.start_timeout_s)
    deadline = time.monotonic() + config.ray.start_timeout_s
    with _undone_on_failure(before.applications, planned):
        serve.start(http_options={"host": config.serve.host, "port": config.serve.port})
        _require_guarded(keys)
        if planned.name not in before.applications:
            _run(
                serve.deployment(Generation, ray_actor_options={"num_cpus": 0}).bind(generation.build(config, planned)),
                planned.name,
            )
        _wait_until_running(planned.name, deadline)
        if old is None:
            _warn_of_writes_left(planned)
            live_record.announce(planned.name, planned.model, str(planned.folder), planned.nodes)
        elif old.application != planned.name:
            rollover.switch(old, planned, _ingresses)
        _run_ingress(config, keys, before.applications)
        _wait_until_running(NAME, deadline)
        _wait_until_ready(address, deadline)
    live_record.own()
    _remove_others(planned, config.serve.drain_s)
    return address


def _warn_of_writes_left(planned: Plan) -> None:
    """An index that was written to, and that another takes the place of while nothing runs, cannot be carried over."""
    for folder, count in rollover.left_behind(planned).items():
        console.print(
            f"warning: {folder} holds {count} writes that this index does not know of: `lrem index snapshot NEW --from "
            f"{Path(folder).parent}` saves that index with them",
            style="yellow",
            markup=False,
        )


def _run_ingress(config: Config, keys: dict[str, Scope], running: Any) -> None:
    """Start the ingress, or again where what it is told has changed."""
    told = hashlib.sha256(repr((config.serve, sorted(keys.items()))).encode()).hexdigest()
    if NAME in running and live_record.told() == told:
        return
    _run(_ingress(config, keys, None), NAME, "/")
    live_record.tell(told)


def _ingress(config: Config, keys: dict[str, Scope], asked: Parts | None) -> serve.Application:
    return generation.deployment(Ingress, config.serve.ingress, ongoing=config.serve.max_requests + 64).bind(
        config.serve, keys, asked
    )


def _keys(config: Config) -> dict[str, Scope]:
    if config.serve.keys_file is None:
        require_loopback(config.serve.host)
        return {}
    return read_keys(config.serve.keys_file)


def _require_guarded(keys: dict[str, Scope]) -> None:
    """Without keys the Serve that runs listens to this machine alone, whoever started it. Raises ConfigError."""
    if not keys:
        require_loopback(str(_get_global_client().http_config.host))


@contextmanager
def _undone_on_failure(before: Any, planned: Plan) -> Iterator[None]:
    """Take down what was not there before; what was live stays."""
    try:
        yield
    except BaseException:
        if NAME not in before:
            stop()
        elif planned.name not in before:
            found = live_record.read()
            if found is None or found.application != planned.name:
                serve.delete(planned.name)
        raise


def _remove_others(planned: Plan, drain_s: float) -> None:
    """Take down generations that are not live, once they have answered what they were asked."""
    others = [name for name in serve.status().applications if name.startswith(f"{NAME}-") and name != planned.name]
    if others:
        time.sleep(drain_s)
    for name in others:
        serve.delete(name)


def _run(target: serve.Application, name: str, route: str | None = None) -> None:
    serve.run_many([serve.RunTarget(target, name=name, route_prefix=route)], wait_for_applications_running=False)


def _ingresses() -> int:
    """How many replicas of the ingress there are, those that start or drain among them."""
    return sum(serve.status().applications[NAME].deployments["Ingress"].replica_states.values())


def base_url(config: Config) -> str:
    """Where this machine reaches the application."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.serve.host, config.serve.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.serve.port}"


def stop() -> None:
    """Take the application down, and Serve with it unless other applications run there."""
    live_record.forget()
    for name in serve.status().applications:
        if name == NAME or name.startswith(f"{NAME}-"):
            serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()


def leave() -> bool:
    """`stop`, unless another process has deployed since this one did. Returns whether it was stopped."""
    if not live_record.owned():
        return False
    stop()
    return True


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


def _wait_until_running(name: str, deadline: float) -> None:
    while (state := serve.status().applications[name]).status != "RUNNING":
        if state.status == "DEPLOY_FAILED":
            raise ConnectionError(f"the serving application did not start: {_cause(state)}")
        if time.monotonic() > deadline:
            waiting = [part for part, found in state.deployments.items() if found.status != "HEALTHY"]
            missing = " and ".join(waiting) or name
            raise TimeoutError(f"waited too long for {missing} (ray.start_timeout_s): look at `ray status`")
        time.sleep(POLL_S)


def _wait_until_ready(address: str, deadline: float) -> None:
    while not _answers(address):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"waited too long for an answer from {address}/readyz (ray.start_timeout_s): see its log"
            )
        time.sleep(POLL_S)


def _answers(address: str) -> bool:
    try:
        return httpx.get(f"{address}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _cause(state: Any) -> str:
    """The error of the first deployment that failed: the last line of its traceback that names an exception."""
    for name, part in state.deployments.items():
        if part.status == "DEPLOY_FAILED":
            errors = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): .*", part.message, re.MULTILINE)
            return f"{name}: {errors[-1] if errors else part.message}"
    return str(state.message)
