"""One step of stage 1: SFT on the reasoning and InfoNCE on the embedding, from one pass over the queries.

Knows rendered rows, the model's forward and the two losses; what drives the backward (DeepSpeed, plain PyTorch) is
handed in. Source: paper, "Stage 1".
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrem.config import ColdStartConfig
from lrem.data.known_positives import KnownPositives
from lrem.modeling.model import EncoderOutput
from lrem.modeling.sequences import Sequences
from lrem.training.distributed import sum_over_ranks, world_size
from lrem.training.gradcache import Backward, Chunk, cached_backward, make_chunks
from lrem.training.losses import info_nce, sft, truncate


class ColdStartBatch(NamedTuple):
    """A rank's rows of one step: B queries, then M ≥ B items, the positives first and in the queries' order."""

    queries: list[list[int]]
    scored: list[tuple[int, int]] | None  # [start, end) of each query's completion; None: nothing to imitate
    items: list[list[int]]
    item_keys: list[int]  # [M]
    known: np.ndarray  # [B, P], see info_nce

    @property
    def work(self) -> tuple[int, int, int]:
        """(real tokens, Σ length², supervised tokens): what the step's speed is reckoned from."""
        lengths = np.array([len(row) for row in self.queries + self.items])
        scored = sum(end - start for start, end in self.scored or [])
        return int(lengths.sum()), int((lengths**2).sum()), scored


def collate(
    rows: Sequence[dict[str, Any]],
    known: KnownPositives,
    imitate: bool = True,
    thought_dropout: float = 0.0,
    random: np.random.Generator | None = None,
) -> ColdStartBatch:
    """Rendered rows → a batch.

    Args:
        rows: `query_ids`, `start`, `item_ids`, `query_key`, `item_key`, and the negatives' ids and keys.
        thought_dropout: share of rows that embed with an empty reasoning and are not imitated, so that a model
            also embeds without thinking (O1 Embedder, arXiv 2502.07555).
    """
    queries, scored = [], []
    for row in rows:
        ids, start = row["query_ids"], row["start"]
        if random is not None and start < len(ids) and random.random() < thought_dropout:
            ids = ids[: start + 1] + ids[-2:]  # <think></think><emb>
            start = len(ids)
        queries.append(ids)
        scored.append((start, len(ids)))
    items = [row["item_ids"] for row in rows] + [ids for row in rows for ids in row["negative_ids"] or []]
    keys = [row["item_key"] for row in rows] + [key for row in rows for key in row["negative_keys"] or []]
    table = known.table([row["query_key"] for row in rows])
    return ColdStartBatch(queries, scored if imitate else None, items, keys, table)


def accumulate_gradients(
    batch: ColdStartBatch,
    settings: ColdStartConfig,
    forward: Callable[[Sequences], EncoderOutput],
    step_backward: Backward,
    device: torch.device,
) -> dict[str, float]:
    """Back-propagate one step's loss, in chunks; returns the global `info_nce` and, where imitated, `sft`.

    L = info_nce_weight · L_InfoNCE + sft_weight · L_SFT; with Matryoshka dimensions L_InfoNCE is the mean over
    the whole embedding and its shortened forms (arXiv 2205.13147).
    """
    size = len(batch.queries)
    parts = make_chunks(batch.queries, batch.scored, 0, settings.chunk_tokens, device)
    parts += make_chunks(batch.items, None, size, settings.chunk_tokens, device)
    positives, keys = torch.arange(size, device=device), torch.tensor(batch.item_keys, device=device)
    known = torch.from_numpy(batch.known).to(device)
    supervised = batch.work[2] if settings.sft_mean == "token" else size
    count = sum_over_ranks(torch.tensor(float(supervised), device=device))
    imitation = torch.zeros((), device=device)

    def contrast(embeddings: Tensor) -> Tensor:
        views = [embeddings, *(truncate(embeddings, d) for d in settings.matryoshka)]
        terms = [info_nce(v[:size], v[size:], positives, keys, known, settings.temperature) for v in views]
        return settings.info_nce_weight * torch.stack(terms).mean()

    def imitate(encoded: EncoderOutput, part: Chunk) -> Tensor | None:
        if encoded.log_probs is None or part.sequences.scored is None:
            return None
        term = sft(encoded.log_probs, part.sequences.scored, count)
        imitation.add_(term.detach())
        return settings.sft_weight * term

    value = cached_backward(parts, forward, contrast, imitate, step_backward, settings.graph_tokens)
    losses = sum_over_ranks(torch.stack([value, imitation])) / world_size()
    found = {"info_nce": losses[0].item() / (settings.info_nce_weight or 1.0)}
    return found if batch.scored is None else found | {"sft": losses[1].item()}


def state_gradient_norms(squares: dict[str, Tensor], device: torch.device) -> dict[str, float]:
    """Norm of each loss's gradient at the last layer's states, over the global batch; clears `squares`.

    Measured where the two losses part, so it costs nothing and holds under every ZeRO stage; the norm over all
    parameters is the optimiser's. The weights of the losses are in it. Source: GradNorm (arXiv 1711.02257).
    """
    local = {name: value.to(device) for name, value in squares.items()}
    names = sorted(local)  # the same on every rank: their chunks are alike
    sums = sum_over_ranks(torch.stack([local[name] for name in names]))
    squares.clear()
    norms = (sums.sqrt() / world_size()).tolist()
    return {f"grad_norm_{name}": norm for name, norm in zip(names, norms, strict=True)}
