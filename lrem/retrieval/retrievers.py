"""The retriever that a shop has: BM25, or an embedding model with its index. Text in, a ranking out; no reasoning.

Curation asks it what a query finds with and without keywords; evaluation scores it as a baseline. Knows folders of
sentence-transformers and of ours, and index snapshots; does not know how a catalogue gets embedded.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from lrem.data.files import sha256
from lrem.data.schema import read_items
from lrem.errors import DataError
from lrem.retrieval.bm25 import Bm25

Ranking = list[tuple[str, float]]  # (item id, score), best first
Kind = Literal["bm25", "lrem", "sentence-transformers", "snapshot"]


class Retriever(Protocol):
    """Anything that ranks a catalogue."""

    def search(self, queries: list[str], k: int) -> list[Ranking]:
        """The k best items of each query."""


class Dense:
    """An embedding model over an index snapshot."""

    def __init__(self, model: "TextModel", index: str) -> None:
        from lrem.index.snapshot import load

        self.model, self.index = model, load(index, model.name)

    def search(self, queries: list[str], k: int) -> list[Ranking]:
        """The k best items of each query, by cosine."""
        if not queries:
            return []
        vectors = np.ascontiguousarray(self.model.queries(queries), dtype=np.float32)  # [Q, H]
        return [[(hit.item_id, hit.score) for hit in hits] for hits in self.index.search(vectors, k)]


def kind_of(spec: str) -> Kind:
    """What a setting names.

    Raises:
        DataError: a folder that is none of these.
    """
    folder = Path(spec)
    if spec == "bm25":
        return "bm25"
    if (folder / "lrem_template.json").exists():
        return "lrem"
    if (folder / "modules.json").exists():
        return "sentence-transformers"
    if "://" in spec or (folder / "manifest.json").exists():
        return "snapshot"
    if folder.exists():
        raise DataError(
            f"{spec} is no model of sentence-transformers (modules.json) or ours (lrem_template.json), and no index "
            "snapshot (manifest.json): name one of these, or bm25"
        )
    raise DataError(f"the retriever {spec} does not exist: name a model folder, an index snapshot, or bm25")


class TextModel(NamedTuple):
    """An embedding model: texts → unit vectors [N, H] of each side, and the name that its vectors are tied to."""

    queries: Callable[[list[str]], np.ndarray]
    items: Callable[[list[str]], np.ndarray]
    name: str


def text_model(spec: str) -> TextModel:
    """Load a model folder; ours embeds queries without thinking.

    Raises:
        DataError: it is a folder of sentence-transformers, and that package is not installed.
    """
    if kind_of(spec) == "lrem":
        import torch

        from lrem.modeling.model import ReasoningEmbedder

        model = ReasoningEmbedder.load(spec).eval()
        if torch.cuda.is_available():
            model.cuda()
        return TextModel(
            lambda texts: model.encode_queries(texts, [None] * len(texts)), model.encode_items, name_of(spec)
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise DataError(f"{spec} needs sentence-transformers: pip install sentence-transformers") from error
    sentences = SentenceTransformer(spec)

    how = {"normalize_embeddings": True, "show_progress_bar": False}  # each side with the prompt that its model names
    return TextModel(
        lambda texts: np.asarray(sentences.encode_query(texts, **how)),
        lambda texts: np.asarray(sentences.encode_document(texts, **how)),
        name_of(spec),
    )


def name_of(spec: str) -> str:
    """The fingerprint of a model folder."""
    if kind_of(spec) == "lrem":
        from lrem.modeling.model import fingerprint

        return fingerprint(Path(spec))
    files = sorted(file for kind in ("*.safetensors", "*.bin", "*.json") for file in Path(spec).rglob(kind))
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()[:16]


def open_retriever(spec: str, items: Path, index: str) -> Retriever:
    """The retriever `spec` over a catalogue.

    Args:
        spec: bm25 or a model folder. items: the catalogue. index: the snapshot of a model's vectors, for a folder.
    """
    if spec == "bm25":
        table = read_items(items)
        return Bm25(table["item_id"].to_pylist(), table["title"].to_pylist())
    return Dense(text_model(spec), index)
