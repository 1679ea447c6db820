"""One step of stage 1: SFT on the reasoning and InfoNCE on the embedding, from one pass over the queries.

The caller hands in what runs forward and backward: DeepSpeed, or plain PyTorch. Source: paper, "Stage 1".
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrem.config import ColdStartConfig
from lrem.data.known_positives import KnownPositives
from lrem.modeling.encoding import EncoderOutput
from lrem.modeling.sequences import Sequences
from lrem.training.distributed import sum_over_ranks, world_size
from lrem.training.gradcache import Backward, Chunk, cached_backward, make_chunks
from lrem.training.gradient_observer import GradNormObserver
from lrem.training.losses import info_nce, sft, truncate


class ColdStartBatch(NamedTuple):
    """One rank's rows of a step: B queries, then M ≥ B items, the positives first and in the queries' order."""

    queries: list[list[int]]
    scored_spans: list[tuple[int, int]] | None  # [start, end) of each query's completion; None: no SFT
    items: list[list[int]]
    item_keys: list[int]  # [M]
    known: np.ndarray  # [B, P], see info_nce

    @property
    def work(self) -> tuple[int, int, int]:
        """(real tokens, Σ length², supervised tokens), for the step's speed."""
        lengths = np.array([len(row) for row in self.queries + self.items])
        scored = sum(end - start for start, end in self.scored_spans or [])
        return int(lengths.sum()), int((lengths**2).sum()), scored


def collate(
    rows: Sequence[dict[str, Any]],
    known: KnownPositives,
    with_sft: bool = True,
    thought_dropout: float = 0.0,
    random: np.random.Generator | None = None,
) -> ColdStartBatch:
    """Turn tokenised rows into a batch.

    Args:
        rows: `query_ids`, `start`, `item_ids`, `query_key`, `item_key`, `negative_ids` and `negative_keys`.
        with_sft: whether the reasonings are trained on.
        thought_dropout: share of rows that embed with an empty reasoning and have no SFT, so that the model
            learns to embed without thinking too (O1 Embedder, arXiv 2502.07555).
    """
    queries, spans = [], []
    for row in rows:
        ids, start = row["query_ids"], row["start"]
        if random is not None and start < len(ids) and random.random() < thought_dropout:
            ids = ids[: start + 1] + ids[-2:]  # <think></think><emb>
            start = len(ids)
        queries.append(ids)
        spans.append((start, len(ids)))
    items = [row["item_ids"] for row in rows] + [ids for row in rows for ids in row["negative_ids"] or []]
    keys = [row["item_key"] for row in rows] + [key for row in rows for key in row["negative_keys"] or []]
    table = known.table([row["query_key"] for row in rows])
    return ColdStartBatch(queries, spans if with_sft else None, items, keys, table)


def accumulate_gradients(
    batch: ColdStartBatch,
    settings: ColdStartConfig,
    forward: Callable[..., EncoderOutput],
    step_backward: Backward,
    device: torch.device,
    observer: GradNormObserver | None = None,
) -> dict[str, float]:
    """Back-propagate one step's loss, in chunks; return the global `info_nce` and, with SFT, `sft`.

    L = info_nce_weight · L_InfoNCE + sft_weight · L_SFT; with Matryoshka dimensions L_InfoNCE is the mean over the
    whole embedding and its shortened forms (arXiv 2205.13147).

    Args:
        forward: Sequences → EncoderOutput; with `observer` it must accept `observe` too, see `encode`.
        observer: records the gradient of each loss.
    """
    size = len(batch.queries)
    parts = make_chunks(batch.queries, batch.scored_spans, 0, settings.chunk_tokens, device)
    parts += make_chunks(batch.items, None, size, settings.chunk_tokens, device)
    positives, keys = torch.arange(size, device=device), torch.tensor(batch.item_keys, device=device)
    known = torch.from_numpy(batch.known).to(device)
    supervised = batch.work[2] if settings.sft_mean == "token" else size
    count = sum_over_ranks(torch.tensor(float(supervised), device=device))
    sft_value = torch.zeros((), device=device)

    def observed(sequences: Sequences) -> EncoderOutput:
        return forward(sequences) if observer is None else forward(sequences, observe=observer.record)

    def contrastive_loss(embeddings: Tensor) -> Tensor:
        views = [embeddings, *(truncate(embeddings, d) for d in settings.matryoshka)]
        terms = [info_nce(v[:size], v[size:], positives, keys, known, settings.temperature) for v in views]
        return settings.info_nce_weight * torch.stack(terms).mean()

    def sft_loss(encoded: EncoderOutput, part: Chunk) -> Tensor | None:
        if encoded.log_probs is None or part.sequences.scored is None:
            return None
        term = sft(encoded.log_probs, part.sequences.scored, count)
        sft_value.add_(term.detach())
        return settings.sft_weight * term

    value = cached_backward(parts, observed, contrastive_loss, sft_loss, step_backward, settings.graph_tokens)
    losses = sum_over_ranks(torch.stack([value, sft_value])) / world_size()
    values = {"info_nce": losses[0].item() / (settings.info_nce_weight or 1.0)}
    return values if batch.scored_spans is None else values | {"sft": losses[1].item()}
