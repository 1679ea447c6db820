"""A model folder as an mteb encoder, to run any of mteb's retrieval tasks with and without reasoning.

mteb is a development dependency, so it is imported only when an `MtebModel` is created.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lrem.config import ModelConfig
from lrem.errors import DataError
from lrem.modeling.model import RECORD, ReasoningEmbedder, fingerprint

if TYPE_CHECKING:
    from mteb.models.model_meta import ModelMeta

Reason = Literal["never", "always", "auto"]
INSTALL = "pip install mteb==2.26.24 -c constraints.txt"
LIMITS = {"budget", "max_query_tokens", "max_item_tokens"}


class MtebModel:
    """The encoder that `mteb.evaluate(model=MtebModel(folder), tasks=[...])` takes. Reads local files only.

    Queries are embedded with a reasoning; everything else is embedded as an item, including both sides of tasks
    without queries. A task's own prompts are ignored, because the template has its own.

    Args:
        folder: a folder written by `ReasoningEmbedder.save`.
        reason: `always` generates a reasoning of at least one token; `never` embeds with an empty reasoning, as the
            service does; `auto` reasons if the probability of an empty reasoning is below `think_below`.
        limits: overrides the token limits of the template; longer texts are truncated.

    Raises:
        FileNotFoundError: the folder contains no weights.
        DataError: `reason` is unknown, or is not `never` for a model that was trained without reasoning.
        ImportError: mteb is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        reason: Reason = "always",
        *,
        think_below: float = 0.5,
        limits: ModelConfig | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
    ) -> None:
        metas = _model_metas()
        folder = Path(folder).resolve()
        revision = fingerprint(folder)  # checked first: a missing folder would be looked up on the hub
        self.reason, self.think_below = reason, think_below
        self.direct = _objective(folder) == "direct"
        self._check(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = ReasoningEmbedder.load(folder, dtype, limits).eval().to(self.device)
        # mteb caches results by these, so every setting that changes a result has to be among them.
        experiment: dict[str, Any] = {"reason": reason, "dtype": str(dtype).removeprefix("torch.")}
        experiment |= {"think_below": think_below} if reason == "auto" else {}
        experiment |= limits.model_dump(include=LIMITS, exclude_none=True) if limits else {}
        self.mteb_model_meta = _meta(metas, self.model, f"lrem/{folder.name}", revision, experiment)

    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: str | None = None, batch_size: int = 32, **_: Any
    ) -> np.ndarray:
        """Return unit embeddings [N, H] float32 of the `text` in the batches; mteb joins a document's title and text.

        Args:
            prompt_type: mteb's PromptType, `query` or `document`, or None.
            batch_size: queries that are reasoned over together.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        if prompt_type != "query":
            return self.model.encode_items(texts)
        return self.model.encode_queries(texts, self.reasonings(texts, batch_size))

    def reasonings(self, queries: Sequence[str], batch_size: int = 32) -> list[str | None]:
        """Return the greedy reasoning to embed with each query, "" if the query is not reasoned over.

        For a model that was trained without reasoning it is None: that model never saw an empty reasoning.
        """
        if self.direct:
            return [None] * len(queries)
        if self.reason == "never":
            return [""] * len(queries)
        think_below = self.think_below if self.reason == "auto" else None
        return [*self.model.reason(queries, think_below, batch_size)]

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return cosines [N, M] of embeddings [N, H] and [M, H], arrays or tensors."""
        from mteb.similarity_functions import cos_sim

        return torch.as_tensor(cos_sim(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return cosines [N] of embeddings [N, H] and [N, H], row by row."""
        from mteb.similarity_functions import pairwise_cos_sim

        return torch.as_tensor(pairwise_cos_sim(embeddings1, embeddings2))

    def _check(self, folder: Path) -> None:
        if self.reason not in get_args(Reason):
            raise DataError(f"reason='{self.reason}' is unknown: choose one of {', '.join(get_args(Reason))}")
        if self.direct and self.reason != "never":
            raise DataError(f"{folder}/{RECORD}: the model was trained without reasoning, so pass reason='never'")


def _objective(folder: Path) -> str | None:
    """Return the objective that the folder records, or None if it records none."""
    file = folder / RECORD
    return json.loads(file.read_text(encoding="utf-8")).get("objective") if file.exists() else None


def _model_metas() -> ModuleType:
    """Import and return mteb's module `model_meta`."""
    try:
        from mteb.models import model_meta
    except ImportError as error:
        raise ImportError(f"MtebModel needs mteb, which cannot be imported ({error}): run `{INSTALL}`") from error
    return model_meta


def _meta(
    metas: ModuleType, model: ReasoningEmbedder, name: str, revision: str, experiment: dict[str, Any]
) -> "ModelMeta":
    """Build mteb's description of the model; required fields that the folder lacks, e.g. the licence, are None."""
    parameters = list(model.parameters())
    known = {
        "name": name,
        "revision": revision,
        "framework": ["PyTorch", "Transformers"],
        "embed_dim": model.dimension,
        "max_tokens": model.template.max_item_tokens,
        "similarity_fn_name": metas.ScoringFunction.COSINE,
        "n_parameters": sum(p.numel() for p in parameters),
        "n_embedding_parameters": model.lm.get_input_embeddings().weight.numel(),
        "memory_usage_mb": sum(p.numel() * p.element_size() for p in parameters) / 2**20,
        "use_instructions": True,  # in mteb's sense: queries and documents have different templates
        "experiment_kwargs": experiment,
    }
    required = [field for field, info in metas.ModelMeta.model_fields.items() if info.is_required()]
    meta: ModelMeta = metas.ModelMeta(**dict.fromkeys(required) | known)
    return meta
