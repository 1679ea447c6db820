"""Settings of the Ray cluster: how to reach it, and which machines run which work."""

from typing import Annotated, Literal

from pydantic import Field

from lrem.config.section import Section

Resources = dict[str, Annotated[float, Field(gt=0)]]  # name of a custom resource → amount per actor
Strategy = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


class RayConfig(Section):
    """How to reach or start Ray."""

    address: str | None = None
    """None: RAY_ADDRESS if set (as in a job), otherwise a local Ray for this command."""
    num_cpus: int = Field(8, ge=4)
    """Logical CPUs of a local Ray. This is only a count: with too few, a stage is refused, or ends after
    `start_timeout_s`."""
    object_store_mb: int = Field(512, ge=100)
    """Object store of a local Ray in MB."""
    gpus: int | None = Field(None, ge=0)
    """GPUs that the cluster can scale to. None: those that it has now."""
    start_timeout_s: float = 180.0
    """Seconds for actors and replicas to start."""
    haproxy: bool = False
    """A local Ray serves HTTP through HAProxy: faster, but its statistics (no queries) are public on the network."""


class PlacementConfig(Section):
    """Custom resources that place work on machine types; cluster.yaml defines one per type.

    By default actors ask only for CPUs and GPUs, so any machine will do.
    """

    data: Resources = Field(default_factory=dict)
    """Per actor that curates or embeds, such as {lrem_data: 1}."""
    training: Resources = Field(default_factory=dict)
    """Per training worker."""
    rollouts: Resources = Field(default_factory=dict)
    """Per rollout engine."""
    reasoner: Resources = Field(default_factory=dict)
    """Per replica of the reasoner and of the embedder."""
    workers: Strategy = "PACK"
    """Placement strategy of the training workers."""
    engines: Strategy = "PACK"
    """Placement strategy of the rollout engines."""
    share_gpus: bool | None = None
    """Put one worker and one engine on the same GPU. None: only if there are too few GPUs."""
