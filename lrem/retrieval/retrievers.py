"""Retrievers without reasoning: BM25, or an embedding model with its index snapshot. Text in, a ranking out.

Curation measures queries with one; evaluation scores them as baselines. A model is a folder of this project or of
sentence-transformers.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from lrem.data.files import sha256
from lrem.data.schema import read_items
from lrem.errors import DataError
from lrem.retrieval.bm25 import Bm25

Ranking = list[tuple[str, float]]  # (item id, score), best first
RetrieverKind = Literal["bm25", "lrem", "sentence-transformers", "snapshot"]


class Retriever(Protocol):
    """Anything that ranks a catalogue."""

    def search(self, queries: list[str], k: int) -> list[Ranking]:
        """Return the k best items of each query."""


class TextModel(NamedTuple):
    """An embedding model: texts → unit vectors [N, H] for each side, and its fingerprint, which an index records."""

    encode_queries: Callable[[list[str]], np.ndarray]
    encode_items: Callable[[list[str]], np.ndarray]
    fingerprint: str


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


@dataclass(frozen=True)
class ResolvedRetriever:
    """A retriever setting after one look at the disk, so that no later step has to inspect it again.

    Attributes:
        kind: what the setting names.
        model: the folder of the model that embeds queries; None for BM25.
        index: the snapshot of the catalogue's vectors; None for BM25, and for a model folder until one is built.
        fingerprint: identifies everything but the catalogue that its rankings depend on.
    """

    kind: RetrieverKind
    model: str | None
    index: str | None
    fingerprint: str

    def open(self, items: Path) -> Retriever:
        """Load the retriever over the catalogue `items`.

        Raises:
            SnapshotError: the index is missing, damaged, or of another model.
        """
        return open_retriever(self.model or "bm25", items, self.index or "")


def resolve_retriever(spec: str, snapshot_model: Path, items: Path) -> ResolvedRetriever:
    """Resolve a retriever setting.

    Args:
        spec: `bm25`, a model folder, or an index snapshot (a folder or a URI).
        snapshot_model: the folder of the model that embeds queries if `spec` is a snapshot.
        items: the catalogue, which a snapshot must have been built from.

    Raises:
        DataError: `spec` is none of these, or the snapshot is of another catalogue.
        SnapshotError: the snapshot cannot be read, or is of another model.
    """
    kind = retriever_kind(spec)
    if kind == "bm25":
        return ResolvedRetriever(kind, None, None, spec)
    if kind == "snapshot":
        manifest = check_index(spec, model_fingerprint(str(snapshot_model)), items)
        return ResolvedRetriever(kind, str(snapshot_model), spec, json.dumps(manifest, sort_keys=True))
    return ResolvedRetriever(kind, spec, None, model_fingerprint(spec))


def check_index(index: str, model: str, items: Path) -> dict[str, Any]:
    """Check that an index snapshot is of this model (by fingerprint) and of this catalogue; return its manifest.

    Raises:
        SnapshotError: there is no snapshot, or it is of another model.
        DataError: it is of another catalogue.
    """
    from lrem.index.snapshot import read_manifest

    manifest = read_manifest(index, model)
    if manifest.get("source") != sha256(items):
        raise DataError(f"{index} was not built from {items}: run `lrem embed` and `lrem index build` again")
    return manifest


def retriever_kind(spec: str) -> RetrieverKind:
    """Return what a retriever setting names.

    Raises:
        DataError: it names nothing, or a folder of another kind.
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
            f"{spec} is neither a model of ours (lrem_template.json) or of sentence-transformers (modules.json) nor an "
            "index snapshot (manifest.json): name one of these, or bm25"
        )
    raise DataError(f"the retriever {spec} does not exist: name a model folder, an index snapshot, or bm25")


def load_text_model(folder: str) -> TextModel:
    """Load a model folder; one of ours embeds queries without reasoning.

    Raises:
        DataError: the folder is of sentence-transformers, and that package is not installed.
    """
    if retriever_kind(folder) == "lrem":
        import torch

        from lrem.modeling.model import ReasoningEmbedder

        model = ReasoningEmbedder.load(folder).eval()
        if torch.cuda.is_available():
            model.cuda()
        return TextModel(
            lambda texts: model.encode_queries(texts, [None] * len(texts)),
            model.encode_items,
            model_fingerprint(folder),
        )
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise DataError(f"{folder} needs sentence-transformers: pip install sentence-transformers") from error
    encoder = SentenceTransformer(folder)

    options = {"normalize_embeddings": True, "show_progress_bar": False}  # prompts per side are the model's own
    return TextModel(
        lambda texts: np.asarray(encoder.encode_query(texts, **options)),
        lambda texts: np.asarray(encoder.encode_document(texts, **options)),
        model_fingerprint(folder),
    )


def model_fingerprint(folder: str) -> str:
    """Return the fingerprint of a model folder: a hash of its weights and settings.

    Raises:
        DataError: there is no such folder.
    """
    if retriever_kind(folder) == "lrem":
        from lrem.modeling.model import fingerprint

        return fingerprint(Path(folder))
    files = sorted(file for kind in ("*.safetensors", "*.bin", "*.json") for file in Path(folder).rglob(kind))
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()[:16]


def open_retriever(spec: str, items: Path, index: str) -> Retriever:
    """Load a retriever over a catalogue.

    Args:
        spec: `bm25` or a model folder.
        items: the catalogue.
        index: the snapshot of a model folder's vectors; unused by BM25.
    """
    if spec == "bm25":
        table = read_items(items)
        return Bm25(table["item_id"].to_pylist(), table["title"].to_pylist())
    return DenseRetriever(load_text_model(spec), index)
