"""A generation: the reasoner, embedder and index shards that serve one model and one index, and where they run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import serve

import lrem
from lrem.config import Config, ReplicasConfig
from lrem.errors import ConfigError
from lrem.index.shard import generation_name
from lrem.index.snapshot import read_manifest
from lrem.modeling.model import fingerprint
from ray_apps.cluster.gpus import gpu_count
from ray_apps.cluster.resources import Bundle, bundle
from ray_apps.serving.embedder import Embedder
from ray_apps.serving.handles import GenerationHandles
from ray_apps.serving.index_shard import IndexShard, ShardSpec
from ray_apps.serving.reasoner import Reasoner

NAME = "lrem"
PINNED_AMOUNT = 0.001  # of the resource that each machine has under its address: a replica that requests it runs there
MAX_ONGOING = 512  # requests a replica holds; Serve's default of 5 would never fill a batch
HEALTH_CHECK_S = 5.0  # between two health checks of a replica


class GenerationPlan(NamedTuple):
    """A generation before it runs: its application, the model's fingerprint, its shards' folder and machines."""

    name: str
    model: str
    folder: Path
    nodes: list[str]  # the address of each shard's machine


def plan_generation(config: Config) -> GenerationPlan:
    """Return the generation that the configuration describes; its name changes with whatever its replicas start with.

    Raises:
        FileNotFoundError: there is no trained model at `paths.model`.
        SnapshotError: there is no index at `paths.index`, or it is another model's.
        ConfigError: a machine of `serve.index_nodes` is not in the cluster.
    """
    model = fingerprint(config.path("model"))
    manifest = read_manifest(config.uri("index"), model)  # replicas check everything, but only after a slow start
    name, settings = generation_name(manifest, config.serve.shards), config.serve
    sections = [config.rollout, config.index, settings.reasoner, settings.embedder, settings.shard]
    inputs = map(str, [config.path("model"), *sections, config.placement.reasoner])
    inputs_json = json.dumps([lrem.__version__, settings.index_nodes, *inputs])
    application = f"{NAME}-{name}-{hashlib.sha256(inputs_json.encode()).hexdigest()[:6]}"
    nodes = [_shard_node(config, shard) for shard in range(settings.shards)]
    return GenerationPlan(application, model, config.path("live") / name, nodes)


def bind_generation(config: Config, plan: GenerationPlan) -> GenerationHandles:
    """Bind the deployments of a generation to their arguments; Serve turns them into handles where they are passed.

    Their names must be those that `handles.connect` looks up.
    """
    model_folder, settings = str(config.path("model")), config.serve
    placed = {"resources": config.placement.reasoner} if config.placement.reasoner else {}
    reasoner = settings.reasoner.model_copy(update={"gpus": _reasoner_gpus(config)})
    shards = []
    for i, node in enumerate(plan.nodes):
        folder = plan.folder / f"shard-{i}-of-{settings.shards}"
        spec = ShardSpec(config.uri("index"), str(folder), plan.model, i, settings.shards, config.index.factory)
        pinned = {"resources": {f"node:{node}": PINNED_AMOUNT}, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
        shard = deployment(IndexShard, settings.shard, name=f"IndexShard{i}", actor_options=pinned)
        shards.append(shard.bind(spec))
    return GenerationHandles(
        plan.model,
        deployment(Reasoner, reasoner, actor_options=placed).bind(model_folder, plan.model, config.rollout),
        deployment(Embedder, settings.embedder, actor_options=placed).bind(model_folder, plan.model),
        shards,
    )


def required_bundles(config: Config, plan: GenerationPlan) -> list[Bundle]:
    """Return the resources that a generation needs to start: one bundle per replica."""
    settings, resources = config.serve, config.placement.reasoner
    reasoners = [bundle(settings.reasoner.cpus, _reasoner_gpus(config), resources)] * settings.reasoner.replicas
    embedders = [bundle(settings.embedder.cpus, settings.embedder.gpus, resources)] * settings.embedder.replicas
    shards = [bundle(settings.shard.cpus, settings.shard.gpus, {f"node:{node}": PINNED_AMOUNT}) for node in plan.nodes]
    return [*reasoners, *embedders, *shards * settings.shard.replicas]


def _reasoner_gpus(config: Config) -> float:
    gpus = config.serve.reasoner.gpus
    return float(gpu_count(config) > 0) if gpus is None else gpus


def deployment(
    replica: type,
    replicas: ReplicasConfig,
    *,
    name: str | None = None,
    max_ongoing: int = MAX_ONGOING,
    actor_options: Mapping[str, Any] | None = None,
) -> serve.Deployment:
    """Return a Serve deployment of a class.

    Args:
        replica: the class.
        replicas: their number, and the CPUs and GPUs of each.
        name: name of the deployment; None: the class's, which `handles.connect` looks up.
        max_ongoing: requests that one replica holds.
        actor_options: Ray's options of each replica, beside its CPUs and GPUs.
    """
    count: dict[str, Any] = {"num_replicas": replicas.replicas}
    if replicas.max_replicas is not None:
        bounds: dict[str, float] = {"min_replicas": replicas.replicas, "max_replicas": replicas.max_replicas}
        bounds |= {"target_ongoing_requests": replicas.target_ongoing, "downscale_delay_s": replicas.downscale_delay_s}
        count = {"autoscaling_config": bounds}
    return serve.deployment(
        replica,
        name=name or replica.__name__,
        max_ongoing_requests=max_ongoing,
        max_constructor_retry_count=1,  # a snapshot of another model would fail a second time too
        health_check_period_s=HEALTH_CHECK_S,
        logging_config={"enable_access_log": False},  # /metrics counts requests; queries are not logged
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus} | dict(actor_options or {}),
        **count,
    )


def _shard_node(config: Config, shard: int) -> str:
    """Return the address of the machine on which a shard runs, with its folder."""
    alive = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    nodes = config.serve.index_nodes or [ray.util.get_node_ip_address()]
    node = nodes[shard % len(nodes)]
    if node not in alive:
        raise ConfigError(
            f"serve.index_nodes: {node} is not one of the cluster's machines ({', '.join(sorted(alive))})"
        )
    return node
