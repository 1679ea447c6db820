"""The search service on Ray Serve: start it, replace it without a failed request, stop it.

    Ingress (HTTP) → Reasoner (vLLM) → Embedder (transformers) → IndexShard 0 … S-1 (Faiss) → Ingress merges

The ingress is one Serve application, with the route; each generation of model and index (generation.py) is another one,
without. The ingress calls the generation that the live record names (live_record.py); rollover.py replaces it.
"""

import hashlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatusOverview

from lrem.config import Config, load_config
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.progress import console
from ray_apps.serving import live_record, rollover
from ray_apps.serving.auth import Scope, read_keys, require_loopback
from ray_apps.serving.generation import (
    NAME,
    GenerationPlan,
    bind_generation,
    deployment,
    plan_generation,
    required_bundles,
)
from ray_apps.serving.handles import GenerationHandles, GenerationRoot
from ray_apps.serving.ingress import Ingress
from ray_apps.serving.readiness import wait_until_ready, wait_until_running


def application(args: dict[str, Any]) -> serve.Application:
    """Return the whole service as one Serve application, for `serve deploy configs/serve.yaml`.

    Args:
        args: `config`, a configuration file; `settings`, a list of dotted.key=value.

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
    keys = _read_keys(config)
    _require_keys_or_loopback(keys)
    return _bind_ingress(config, keys, bind_generation(config, plan_generation(config)))


def start(config: Config) -> str:
    """Deploy the service in the current Ray, wait until it answers, return its base address.

    If it runs already with another model, index or settings, the new generation starts beside the old one, takes over
    what was written to that one, and then replaces it.

    Raises:
        FileNotFoundError, SnapshotError: as `plan_generation`.
        ConfigError: other machines can reach the address and there are no keys, or a machine is not in the cluster.
        DataError: the cluster will never have enough resources.
        ConnectionError: the port is taken, or a deployment cannot start (the message holds its error).
        TimeoutError: not ready within ray.start_timeout_s; the message names what was missing.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its steps do not interest the user
    keys, plan, running = _read_keys(config), plan_generation(config), serve.status()
    if not running.proxies:  # a running Serve holds its port itself
        require_free(config.serve.host, config.serve.port)
    address, old = base_url(config), live_record.read() if NAME in running.applications else None
    if plan.name not in running.applications:
        wait_for_resources(required_bundles(config, plan), "the service", config.ray.start_timeout_s)
    deadline = time.monotonic() + config.ray.start_timeout_s
    with _undo_on_failure(running.applications, plan):
        serve.start(http_options={"host": config.serve.host, "port": config.serve.port})
        _require_keys_or_loopback(keys)
        if plan.name not in running.applications:
            root = serve.deployment(GenerationRoot, name="Generation", ray_actor_options={"num_cpus": 0})
            _run(root.bind(bind_generation(config, plan)), plan.name)
        wait_until_running(plan.name, deadline)
        if old is None:
            _warn_of_lost_writes(plan)
            live_record.publish(plan.name, plan.model, str(plan.folder), plan.nodes)
        elif old.application != plan.name:
            rollover.switch(old, plan, _count_ingresses)
        _run_ingress(config, keys, running.applications)
        wait_until_running(NAME, deadline)
        wait_until_ready(address, deadline)
    live_record.claim_ownership()
    _remove_other_generations(plan, config.serve.drain_s)
    return address


def stop() -> None:
    """Remove the service, and Serve with it unless other applications run there."""
    live_record.clear()
    for name in serve.status().applications:
        if name == NAME or name.startswith(f"{NAME}-"):
            serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()


def stop_if_owner() -> bool:
    """Stop the service, unless another process has deployed since this one did; return whether it was stopped."""
    if not live_record.is_owner():
        return False
    stop()
    return True


def base_url(config: Config) -> str:
    """Return the address at which this machine reaches the service."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.serve.host, config.serve.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{config.serve.port}"


def require_free(host: str, port: int) -> None:
    """Raise ConnectionError if another process listens on the port already."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConnectionError(
                f"cannot listen on {host}:{port} ({error.strerror}): stop what uses it, or pass serve.port=…"
            ) from error


def _warn_of_lost_writes(plan: GenerationPlan) -> None:
    """Warn of writes to another index, which cannot be carried over because it is not running."""
    for folder, count in rollover.lost_writes(plan).items():
        console.print(
            f"warning: {folder} holds {count} writes that this index does not have: `lrem index snapshot NEW --from "
            f"{Path(folder).parent}` saves that index with them",
            style="yellow",
            markup=False,
        )


def _run_ingress(config: Config, keys: dict[str, Scope], running: Mapping[str, ApplicationStatusOverview]) -> None:
    """Start the ingress, or restart it if its settings or keys have changed."""
    digest = hashlib.sha256(repr((config.serve, sorted(keys.items()))).encode()).hexdigest()
    if NAME in running and live_record.read_ingress_digest() == digest:
        return
    _run(_bind_ingress(config, keys, None), NAME, "/")
    live_record.save_ingress_digest(digest)


def _bind_ingress(config: Config, keys: dict[str, Scope], handles: GenerationHandles | None) -> serve.Application:
    # more than max_requests, so that the ingress itself answers 429
    ingress = deployment(Ingress, config.serve.ingress, max_ongoing=config.serve.max_requests + 64)
    return ingress.bind(config.serve, keys, handles)


def _read_keys(config: Config) -> dict[str, Scope]:
    if config.serve.keys_file is None:
        require_loopback(config.serve.host)
        return {}
    return read_keys(config.serve.keys_file)


def _require_keys_or_loopback(keys: dict[str, Scope]) -> None:
    """Raise ConfigError if the running Serve, whoever started it, is open to other machines and there are no keys."""
    if not keys:
        require_loopback(str(_get_global_client().http_config.host))


@contextmanager
def _undo_on_failure(running: Mapping[str, ApplicationStatusOverview], plan: GenerationPlan) -> Iterator[None]:
    """Remove what was not `running` before; what was live stays."""
    try:
        yield
    except BaseException:
        if NAME not in running:
            stop()
        elif plan.name not in running:
            record = live_record.read()
            if record is None or record.application != plan.name:
                serve.delete(plan.name)
        raise


def _remove_other_generations(plan: GenerationPlan, drain_s: float) -> None:
    """Remove generations that are not live, after the time in which they answer their last requests."""
    others = [name for name in serve.status().applications if name.startswith(f"{NAME}-") and name != plan.name]
    if others:
        time.sleep(drain_s)
    for name in others:
        serve.delete(name)


def _run(target: serve.Application, name: str, route: str | None = None) -> None:
    serve.run_many([serve.RunTarget(target, name=name, route_prefix=route)], wait_for_applications_running=False)


def _count_ingresses() -> int:
    """Return the number of replicas of the ingress, with those that start or drain."""
    return sum(serve.status().applications[NAME].deployments["Ingress"].replica_states.values())
