"""The settings of the cluster: how Ray is reached, and on which of its machines each kind of work runs."""

from typing import Annotated, Literal

from pydantic import Field

from lrem.config.settings import Section

Resources = dict[str, Annotated[float, Field(gt=0)]]  # name of a resource → how much each actor takes of it
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


class RayConfig(Section):
    """How to reach or start Ray."""

    address: str | None = None  # None: RAY_ADDRESS if set (as in a job), else a local Ray for this command
    num_cpus: int = Field(8, ge=4)  # a local Ray's logical CPUs: only a count, fewer and actors wait for ever
    object_store_mb: int = Field(512, ge=100)  # a local Ray's
    gpus: int | None = Field(None, ge=0)  # None: those the cluster has now; else what it can scale to
    start_timeout_s: float = 180.0  # for actors and replicas to come up
    haproxy: bool = False  # a local Ray's: HTTP by HAProxy, faster; its statistics, no queries, are open to the net


class PlacementConfig(Section):
    """Where the parts run. cluster.yaml gives each kind of machine resources of its own, that actors may ask for.

    The default asks for CPUs and GPUs alone, so that any machine will do.
    """

    data: Resources = Field(default_factory=dict)  # of each actor that curates or embeds, as {lrem_data: 1}
    training: Resources = Field(default_factory=dict)  # of each training worker
    rollouts: Resources = Field(default_factory=dict)  # of each rollout engine
    reasoner: Resources = Field(default_factory=dict)  # of each replica of the reasoner, and of the embedder
    workers: Strategy = "PACK"  # training workers: on few machines, or each on another
    engines: Strategy = "PACK"  # rollout engines
    share_gpus: bool | None = None  # a worker and an engine on one GPU; None: where there are too few GPUs for each
