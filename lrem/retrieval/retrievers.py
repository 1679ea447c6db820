"""Retrievers without reasoning: BM25, or an embedding model with its index snapshot. Text in, a ranking out.

Curation measures queries with one; evaluation scores them as baselines.
"""

from pathlib import Path
from typing import Protocol

import numpy as np

from lrem.data.schema import read_items
from lrem.retrieval.bm25 import Bm25
from lrem.retrieval.text_model import TextModel, load_text_model

Ranking = list[tuple[str, float]]  # (item id, score), best first


class Retriever(Protocol):
    """Anything that ranks a catalogue."""

    def search(self, queries: list[str], k: int) -> list[Ranking]:
        """Return the k best items of each query."""


class DenseRetriever:
    """An embedding model over an index snapshot."""

    def __init__(self, model: TextModel, index: str) -> None:
        from lrem.index.snapshot import open_snapshot

        self.model, self.index = model, open_snapshot(index, model.fingerprint)

    def search(self, queries: list[str], k: int) -> list[Ranking]:
        """Return the k best items of each query, by cosine."""
        if not queries:
            return []
        vectors = np.ascontiguousarray(self.model.encode_queries(queries), dtype=np.float32)  # [Q, H]
        return [[(hit.item_id, hit.score) for hit in hits] for hits in self.index.search(vectors, k)]


def open_retriever(spec: str, items: Path, index: str) -> Retriever:
    """Load a retriever over a catalogue.

    Args:
        spec: `bm25` or a model folder.
        items: the catalogue.
        index: the snapshot of a model folder's vectors; unused by BM25.
    """
    if spec == "bm25":
        table = read_items(items, check_limits=False)
        return Bm25(table["item_id"].to_pylist(), table["title"].to_pylist())
    return DenseRetriever(load_text_model(spec), index)
