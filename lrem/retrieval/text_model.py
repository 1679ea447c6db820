"""An embedding model from a folder of this project or of sentence-transformers, behind one interface."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrem.data.files import sha256
from lrem.errors import DataError
from lrem.retrieval.retriever_kind import retriever_kind


class TextModel(NamedTuple):
    """An embedding model: texts → unit vectors [N, H] for each side, and its fingerprint, which an index records."""

    encode_queries: Callable[[list[str]], np.ndarray]
    encode_items: Callable[[list[str]], np.ndarray]
    fingerprint: str


def load_text_model(folder: str) -> TextModel:
    """Load a model folder; one of ours embeds queries without reasoning.

    Raises:
        DataError: the folder is of sentence-transformers, and that package is not installed.
    """
    if retriever_kind(folder, "model") == "lrem":
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
    if retriever_kind(folder, "model") == "lrem":
        from lrem.modeling.model import fingerprint

        return fingerprint(Path(folder))
    files = sorted(file for kind in ("*.safetensors", "*.bin", "*.json") for file in Path(folder).rglob(kind))
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()[:16]
