"""A cross-encoder of sentence-transformers as a judge: a query and a title in, relevance from 0 to 1 out."""

from collections.abc import Sequence
from typing import Any

from lrem.errors import DataError


class CrossEncoderJudge:
    """A model with one output; whatever activation its folder names, the score is its sigmoid.

    Raises:
        DataError: the package is missing, the model cannot be loaded, or it has more than one output.
    """

    def __init__(self, spec: str) -> None:
        try:
            import torch
            from sentence_transformers import CrossEncoder
        except ImportError as error:
            raise DataError(f"{spec} needs sentence-transformers: pip install sentence-transformers") from error
        try:
            self._model: Any = CrossEncoder(spec, activation_fn=torch.nn.Sigmoid())
        except (OSError, ValueError) as error:
            raise DataError(f"the cross-encoder {spec} cannot be loaded ({error}): name a folder or a model") from error
        if self._model.num_labels != 1:
            raise DataError(f"the cross-encoder {spec} has {self._model.num_labels} outputs: relevance alone is needed")

    def scores(self, query: str, titles: Sequence[str]) -> list[float]:
        """The relevance of each title, 0 to 1."""
        pairs = [(query, title) for title in titles]
        return [float(score) for score in self._model.predict(pairs, show_progress_bar=False)] if pairs else []
