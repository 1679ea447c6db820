"""The actors that search the catalogue, one system each, and calls to them with a deadline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.actor import ActorHandle, ActorMethod

from lrem.config import Config
from lrem.data.vectors import group_means
from lrem.index.snapshot import open_snapshot
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from lrem.retrieval.retrievers import open_retriever
from ray_apps.evaluation.query_set import Ranking
from ray_apps.rollouts.client import get_within

BATCH = 256  # queries per call


class SearchActor:
    """A model of ours with its index: takes queries and reasonings, returns rankings."""

    def __init__(self, model: str, index: str, depth: int) -> None:
        self.model = ReasoningEmbedder.load(model).eval()
        if torch.cuda.is_available():
            self.model.cuda()
        self.index, self.depth = open_snapshot(index, fingerprint(Path(model))), depth

    def empty_probabilities(self, queries: list[str]) -> list[float]:
        """Return for each query the model's probability, 0 to 1, that it needs no reasoning."""
        return self.model.empty_reasoning_probabilities(queries)

    def search(self, queries: list[str], reasonings: list[str | None]) -> list[Ranking]:
        """Return the top `depth` items of each query."""
        return self._nearest(self.model.encode_queries(queries, reasonings))

    def search_mean(self, queries: list[str], reasonings: list[list[str]]) -> list[Ranking]:
        """Return the top `depth` items by the mean embedding over several reasonings of each query."""
        texts = [query for query, samples in zip(queries, reasonings, strict=True) for _ in samples]
        vectors = self.model.encode_queries(texts, [text for samples in reasonings for text in samples])
        return self._nearest(group_means(vectors, [len(samples) for samples in reasonings]))

    def truncate(self, reasonings: list[str], tokens: int) -> list[str]:
        """Return the reasonings truncated to `tokens` tokens of the model."""
        renderer = self.model.renderer
        return [renderer.reasoning_text(renderer.reasoning_ids(text)[:tokens]) for text in reasonings]

    def _nearest(self, vectors: np.ndarray) -> list[Ranking]:
        return [[(hit.item_id, hit.score) for hit in hits] for hits in self.index.search(vectors, self.depth)]


class RetrieverActor:
    """A retriever of another kind, named by `spec` as in `curate.retriever`, with its index."""

    def __init__(self, spec: str, items: Path, index: str, depth: int) -> None:
        self.retriever, self.depth = open_retriever(spec, items, index), depth

    def search(self, queries: list[str]) -> list[Ranking]:
        """Return the top `depth` items of each query."""
        return self.retriever.search(queries, self.depth)


def start_actor(kind: type, *args: object, gpus: float = 0) -> ActorHandle:
    """Start an actor of class `kind` on one CPU and `gpus` GPUs."""
    return ray.remote(num_cpus=1, num_gpus=gpus)(kind).remote(*args)


def call_in_batches(
    method: ActorMethod, config: Config, queries: list[str], reasonings: Sequence[Any] | None = None
) -> list[Any]:
    """Call an actor's method on batches of queries, and of reasonings if given; returns all results in order.

    Raises:
        TimeoutError: a batch took longer than rollout.timeout_s.
    """
    results: list[Any] = []
    for start in range(0, len(queries), BATCH):
        batch = slice(start, start + BATCH)
        columns = [queries[batch]] if reasonings is None else [queries[batch], reasonings[batch]]
        results += call(method, config, *columns)
    return results


def call(method: ActorMethod, config: Config, *args: object) -> Any:
    """Call an actor's method and return its result.

    Raises:
        TimeoutError: it took longer than rollout.timeout_s.
    """
    what = f"a model to load, or to embed and search {BATCH} queries (rollout.timeout_s)"
    [result] = get_within([method.remote(*args)], config.rollout.timeout_s, what)
    return result
