"""Settings of embedding, the index and the search service."""

from pydantic import Field, model_validator

from lrem.config.paths import LocalPath
from lrem.config.section import Section


class EmbedConfig(Section):
    """Offline embedding of a catalogue."""

    actors: int = Field(1, ge=1)
    """Actors, each with one copy of the model."""
    batch_size: int = Field(1024, ge=1)
    """Items per call of an actor, which sorts them by length."""


class IndexConfig(Section):
    """The Faiss index."""

    factory: str | None = None
    """A Faiss factory string. None: chosen by the number of items, and the reason is logged."""


class ReplicasConfig(Section):
    """Replicas of a deployment. With `max_replicas`, Ray Serve scales them with the load."""

    replicas: int = Field(1, ge=1)
    """Replicas at the start, and the minimum."""
    max_replicas: int | None = Field(None, ge=1)
    """Maximum replicas. None: always `replicas`."""
    target_ongoing: int = Field(16, ge=1)
    """Ongoing requests per replica above which another replica is started."""
    downscale_delay_s: float = Field(600.0, ge=0)
    """Seconds of lower load after which a replica is removed."""
    cpus: float = Field(1.0, gt=0)
    """Logical CPUs per replica."""
    gpus: float = Field(0.0, ge=0)
    """GPUs per replica."""

    @model_validator(mode="after")
    def _check_order(self) -> "ReplicasConfig":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below replicas {self.replicas}")
        return self


class IngressConfig(ReplicasConfig):
    """The HTTP ingress."""

    cpus: float = Field(0.1, gt=0)
    """Logical CPUs per replica."""


class ReasonerConfig(ReplicasConfig):
    """The reasoner: vLLM."""

    gpus: float | None = Field(None, ge=0)  # type: ignore[assignment]
    """GPUs per replica. None: one if the cluster has GPUs."""


class ShardConfig(ReplicasConfig):
    """An index shard. Replicas of one shard share a folder, so they run on one machine."""

    cpus: float = Field(0.5, gt=0)
    """Logical CPUs per replica."""


class ServeConfig(Section):
    """The search service."""

    host: str = "127.0.0.1"
    """Address to bind to."""
    port: int = 8000
    """Port to bind to."""
    keys_file: LocalPath | None = None
    """File of API keys for reading and writing. Without it, only loopback addresses are allowed."""
    shards: int = Field(1, ge=1)
    """Index shards."""
    index_nodes: list[str] = Field(default_factory=list)
    """Addresses of the index machines: shard i runs on the i-th. Empty: on this machine."""
    ingress: IngressConfig = IngressConfig()
    reasoner: ReasonerConfig = ReasonerConfig()
    embedder: ReplicasConfig = ReplicasConfig()
    shard: ShardConfig = ShardConfig()
    timeout_s: float = Field(60.0, gt=0)
    """Seconds for one request."""
    reason_timeout_s: float = Field(10.0, gt=0)
    """Maximum seconds for reasoning, less if `timeout_s` runs short; after that the query is embedded without it."""
    search_timeout_s: float = Field(5.0, gt=0)
    """Seconds for a shard; afterwards the response is sent without its items."""
    max_requests: int = Field(256, ge=1)
    """Concurrent requests per ingress replica; further ones get status 429."""
    think_below: float = Field(0.5, ge=0, le=1)
    """`auto` reasons if the probability of an empty reasoning is below this."""
    max_body_mb: float = Field(8.0, gt=0)
    """Largest request body in MB."""
    cache_size: int = Field(10_000, ge=0)
    """Queries whose reasoning and embedding are cached. 0: no cache."""
    cache_ttl_s: float = Field(3600.0, gt=0)
    """Seconds that a cached query stays valid."""
    drain_s: float = Field(10.0, gt=0)
    """Seconds that a replaced model or index keeps answering requests already sent to it."""
    token_ids: bool = False
    """Whether `/v1/embeddings` accepts token ids, which must be of the served model's tokenizer."""
    examples: list[str] = Field(default_factory=list)
    """Queries that the search page offers."""

    @model_validator(mode="after")
    def _check_timeouts(self) -> "ServeConfig":
        if self.reason_timeout_s + self.search_timeout_s >= self.timeout_s:
            raise ValueError(
                f"reason_timeout_s ({self.reason_timeout_s:g}) and search_timeout_s ({self.search_timeout_s:g}) leave "
                f"no time to answer without reasoning within timeout_s ({self.timeout_s:g}): raise it, or lower the two"
            )
        return self
