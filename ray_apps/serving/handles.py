"""Typed handles of the deployments of a generation: which methods the ingress calls, on which class they run.

Ray's own `DeploymentHandle` accepts any name and any argument. `tests/unit/serving/test_handles.py` keeps these types
equal to the classes'.
"""

from collections.abc import Generator
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import numpy as np
from ray import serve

from lrem.index.changes import Changes, Watermark
from lrem.training.rollout import ReasoningResponse
from ray_apps.serving.index_shard import FieldKinds, IndexShardRequest, ShardHits

Payload = dict[str, Any]  # JSON
ReasonedQuery = tuple[str, str | None]  # a query and its reasoning; None: without one, embedded as an empty thought
P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)


class RemoteResponse(Protocol[T_co]):
    """The result of a remote call, to be awaited or, outside an event loop, waited for."""

    def __await__(self) -> Generator[Any, None, T_co]:
        """Wait for the result."""

    def cancel(self) -> None:
        """Cancel the call."""

    def result(self, *, timeout_s: float | None = None) -> T_co:
        """Wait for the result outside an event loop."""


class RemoteMethod(Protocol[P, T_co]):
    """A method of a deployment: `remote` runs it on one replica, chosen by Serve."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> RemoteResponse[T_co]:
        """Send the call."""


class ReasonerHandle(Protocol):
    """Handle of `reasoner.Reasoner` (vLLM)."""

    ping: RemoteMethod[[], None]
    reason: RemoteMethod[[list[str], int, float | None], ReasoningResponse]


class EmbedderHandle(Protocol):
    """Handle of `embedder.Embedder` (transformers)."""

    ping: RemoteMethod[[], None]
    embed_queries: RemoteMethod[[list[ReasonedQuery]], np.ndarray]
    embed_items: RemoteMethod[[list[str]], np.ndarray]
    count_tokens: RemoteMethod[[list[str], list[str | None] | None], tuple[int, int]]
    decode: RemoteMethod[[list[list[int]]], list[str]]
    dimensions: RemoteMethod[[], tuple[int, tuple[int, ...]]]


class IndexShardHandle(Protocol):
    """Handle of `index_shard.IndexShard` (Faiss and SQLite)."""

    ping: RemoteMethod[[], None]
    search: RemoteMethod[[list[IndexShardRequest], str], list[ShardHits]]
    upsert: RemoteMethod[[list[str], list[Payload], np.ndarray, str], int]
    delete: RemoteMethod[[list[str]], int]
    get: RemoteMethod[[list[str]], dict[str, Payload]]
    count: RemoteMethod[[Payload | None], tuple[int, FieldKinds]]
    scroll: RemoteMethod[[int, str], list[tuple[str, Payload]]]
    changes: RemoteMethod[[Watermark | None, int], Changes]
    mark_carried_over: RemoteMethod[[Watermark], None]


class GenerationHandles(NamedTuple):
    """The deployments that serve one model and one index together; `model` is the model's fingerprint."""

    model: str
    reasoner: ReasonerHandle
    embedder: EmbedderHandle
    shards: list[IndexShardHandle]


class GenerationRoot:
    """Root deployment of a generation's application, which has no route: it keeps the deployments running."""

    def __init__(self, handles: GenerationHandles) -> None:
        self.handles = handles


def connect(application: str, model: str, shards: int) -> GenerationHandles:
    """Return the handles of a generation that runs as the Serve application `application`."""
    # the names that generation.bind_generation deploys them under: the classes' own, and one per shard
    names = ("Reasoner", "Embedder", *(f"IndexShard{i}" for i in range(shards)))
    reasoner, embedder, *indexes = (serve.get_deployment_handle(name, application) for name in names)
    return GenerationHandles(
        model,
        cast(ReasonerHandle, reasoner),
        cast(EmbedderHandle, embedder),
        [cast(IndexShardHandle, shard) for shard in indexes],
    )
