"""What serves one model and one index together, a generation: reasoner, embedder and index shards, and where they run.

Knows how each part is deployed; does not know HTTP, nor which generation is live.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray import serve

import lrem
from lrem.config import Config, ReplicasConfig
from lrem.errors import ConfigError
from lrem.index.shard import generation
from lrem.index.snapshot import read_manifest
from lrem.modeling.model import fingerprint
from ray_apps.cluster.gpus import gpu_count
from ray_apps.cluster.resources import Bundle, bundle
from ray_apps.serving.embedder import Embedder
from ray_apps.serving.index_shard import IndexShard, Part
from ray_apps.serving.reasoner import Reasoner
from ray_apps.serving.search_backend import Parts

NAME = "lrem"
PINNED = 0.001  # of the resource that each machine has under its address: a replica that asks for it runs there
ONGOING = 512  # requests a replica holds; Serve's default of 5 would never fill a batch
HEALTH_S = 5.0  # between two looks whether a replica is well


class Plan(NamedTuple):
    """A generation before it runs: its application, the model's fingerprint, its shards' folder and machines."""

    name: str
    model: str
    folder: Path
    nodes: list[str]  # of each shard


def plan(config: Config) -> Plan:
    """What would be served.

    Raises:
        FileNotFoundError: there is no trained model at `paths.model`.
        SnapshotError: there is no index at `paths.index`, or it is another model's.
        ConfigError: a machine of `serve.index_nodes` is not in the cluster.
    """
    model = fingerprint(config.path("model"))
    manifest = read_manifest(config.uri("index"), model)  # replicas check everything, but only after a slow start
    name, served = generation(manifest, config.serve.shards), config.serve
    running = [str(config.path("model")), config.rollout, config.index, served.reasoner, served.embedder, served.shard]
    running.append(config.placement.reasoner)
    told = json.dumps([lrem.__version__, served.index_nodes, *map(str, running)])
    application = f"{NAME}-{name}-{hashlib.sha256(told.encode()).hexdigest()[:6]}"
    nodes = [_node(config, shard) for shard in range(served.shards)]
    return Plan(application, model, config.path("live") / name, nodes)


def build(config: Config, planned: Plan) -> Parts:
    """The deployments of a generation, bound to what they start with."""
    folder, served, asked = str(config.path("model")), config.serve, config.placement.reasoner
    reasoner = deployment(Reasoner, served.reasoner, _reasoner_gpus(config), resources=asked)
    shards = [
        deployment(IndexShard, served.shard, name=f"IndexShard{i}", node=planned.nodes[i]).bind(
            Part(
                config.uri("index"),
                str(planned.folder / f"shard-{i}-of-{served.shards}"),
                planned.model,
                i,
                served.shards,
                config.index.factory,
            )
        )
        for i in range(served.shards)
    ]
    return Parts(
        planned.model,
        reasoner.bind(folder, planned.model, config.rollout),
        deployment(Embedder, served.embedder, resources=asked).bind(folder, planned.model),
        shards,  # Serve makes handles of them
    )


def needs(config: Config, planned: Plan) -> list[Bundle]:
    """What the machines have to give before a generation can run: a bundle for each replica of its start."""
    served, asked = config.serve, config.placement.reasoner
    reasoners = [bundle(served.reasoner.cpus, _reasoner_gpus(config), asked)] * served.reasoner.replicas
    embedders = [bundle(served.embedder.cpus, served.embedder.gpus, asked)] * served.embedder.replicas
    shards = [bundle(served.shard.cpus, served.shard.gpus, {f"node:{node}": PINNED}) for node in planned.nodes]
    return [*reasoners, *embedders, *shards * served.shard.replicas]


def _reasoner_gpus(config: Config) -> float:
    gpus = config.serve.reasoner.gpus
    return float(gpu_count(config) > 0) if gpus is None else gpus


def deployment(
    replica: type,
    replicas: ReplicasConfig,
    gpus: float | None = None,
    name: str | None = None,
    node: str | None = None,
    ongoing: int = ONGOING,
    resources: dict[str, float] | None = None,
) -> serve.Deployment:
    """A deployment as its settings say, on one machine if `node` is its address; a replica holds `ongoing` requests."""
    options: dict[str, Any] = {"num_cpus": replicas.cpus, "num_gpus": replicas.gpus if gpus is None else gpus}
    if resources:
        options["resources"] = resources
    if node is not None:
        options |= {"resources": {f"node:{node}": PINNED}, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    count: dict[str, Any] = {"num_replicas": replicas.replicas}
    if replicas.max_replicas is not None:
        bounds = {"min_replicas": replicas.replicas, "max_replicas": replicas.max_replicas}
        count = {"autoscaling_config": bounds | {"target_ongoing_requests": replicas.target_ongoing}}
    return serve.deployment(
        replica,
        name=name or replica.__name__,
        max_ongoing_requests=ongoing,
        max_constructor_retry_count=1,  # another model's snapshot is the same at the second attempt
        health_check_period_s=HEALTH_S,
        logging_config={"enable_access_log": False},  # /metrics counts, and nobody's queries are kept
        ray_actor_options=options,
        **count,
    )


def _node(config: Config, shard: int) -> str:
    """The address of the machine that a shard lives on, with its folder."""
    known = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    nodes = config.serve.index_nodes or [ray.util.get_node_ip_address()]
    chosen = nodes[shard % len(nodes)]
    if chosen not in known:
        raise ConfigError(f"serve.index_nodes: {chosen} is none of the cluster's machines ({', '.join(sorted(known))})")
    return chosen
