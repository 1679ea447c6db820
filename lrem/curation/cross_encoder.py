"""A sentence-transformers cross-encoder as judge: a query and titles in, relevance from 0 to 1 out."""

from collections.abc import Sequence
from typing import Any

from lrem.errors import DataError


class CrossEncoderJudge:
    """A cross-encoder with one output. The score is its sigmoid, whatever activation its folder names.

    Raises:
        DataError: the package is missing, the model cannot be loaded, or it has several outputs.
    """

    def __init__(self, model: str) -> None:
        try:
            import torch
            from sentence_transformers import CrossEncoder
        except ImportError as error:
            raise DataError(f"{model} needs sentence-transformers: pip install sentence-transformers") from error
        try:
            self._model: Any = CrossEncoder(model, activation_fn=torch.nn.Sigmoid())
        except (OSError, ValueError) as error:
            raise DataError(
                f"the cross-encoder {model} cannot be loaded ({error}): name a folder or a model"
            ) from error
        if self._model.num_labels != 1:
            raise DataError(
                f"the cross-encoder {model} has {self._model.num_labels} outputs: use one with a single output"
            )

    def scores(self, query: str, titles: Sequence[str]) -> list[float]:
        """Return the relevance of each title, from 0 to 1."""
        pairs = [(query, title) for title in titles]
        return [float(score) for score in self._model.predict(pairs, show_progress_bar=False)] if pairs else []
