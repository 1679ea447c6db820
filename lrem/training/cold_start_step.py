"""One step of stage 1: SFT on the reasoning and InfoNCE on the embedding, from one pass over the queries.

The caller hands in what runs forward and backward: DeepSpeed, or plain PyTorch. Source: paper, "Stage 1". Which thought
a query is embedded with is drawn in lrem.training.thoughts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrem.config import ColdStartConfig
from lrem.data.known_positives import KnownPositives, identity
from lrem.modeling.encoding import EncoderOutput
from lrem.modeling.sequences import Sequences
from lrem.training.distributed import sum_over_ranks, world_size
from lrem.training.gradcache import Backward, Chunk, cached_backward, make_chunks
from lrem.training.gradient_observer import GradNormObserver
from lrem.training.losses import info_nce, sft, truncate

NO_ITEM = -1  # pads `known`


class ColdStartBatch(NamedTuple):
    """One rank's rows of a step: B queries, then M ≥ B items, the positives first and in the queries' order.

    `without_thought` has, for InfoNCE without thoughts, the sequences of the E queries whose thought is not empty, and
    `embedded_without` [B] the row of each query's sequence among queries + without_thought; None: no such loss.
    `thought_pairs` are further (query, item) rows: the item is the text of the query's thought.
    """

    queries: list[list[int]]
    scored_spans: list[tuple[int, int]] | None  # [start, end) of each query's completion; None: no SFT
    items: list[list[int]]
    item_keys: list[int]  # [M]
    known: np.ndarray  # [B, P], see info_nce
    without_thought: Sequence[list[int]] = ()
    embedded_without: list[int] | None = None
    thought_pairs: Sequence[tuple[int, int]] = ()

    @property
    def query_side(self) -> list[list[int]]:
        """All query sequences, [B + E]."""
        return [*self.queries, *self.without_thought]

    @property
    def work(self) -> tuple[int, int, int]:
        """(real tokens, Σ length², supervised tokens), for the step's speed."""
        lengths = np.array([len(row) for row in self.query_side + self.items])
        scored = sum(end - start for start, end in self.scored_spans or [])
        return int(lengths.sum()), int((lengths**2).sum()), scored

    @property
    def query_spans(self) -> list[tuple[int, int]] | None:
        """The scored spans of `query_side`."""
        return None if self.scored_spans is None else self.scored_spans + [(0, 0)] * len(self.without_thought)


def collate(
    rows: Sequence[Mapping[str, Any]], known: KnownPositives, with_sft: bool = True, without_thought: bool = False
) -> ColdStartBatch:
    """Turn tokenised rows into a batch.

    Args:
        rows: `query_ids`, `start` of its completion, `item_ids`, `query_key`, `item_key`, `negative_ids` and
            `negative_keys`; optionally `scored`, False for a row without SFT, and `thought_ids`, its thought as an
            item.
        with_sft: whether the reasonings are trained on.
        without_thought: whether each query is embedded without its thought too.
    """
    queries = [row["query_ids"] for row in rows]
    starts = [row["start"] if row.get("scored", True) else len(row["query_ids"]) for row in rows]
    spans = [(start, len(ids)) for start, ids in zip(starts, queries, strict=True)]
    items = [row["item_ids"] for row in rows] + [ids for row in rows for ids in row["negative_ids"] or []]
    keys = [row["item_key"] for row in rows] + [key for row in rows for key in row["negative_keys"] or []]
    batch = ColdStartBatch(
        queries, spans if with_sft else None, items, keys, known.table([row["query_key"] for row in rows])
    )
    if without_thought:
        batch = _add_empty_thoughts(batch, [row["start"] for row in rows])
    return _add_thought_pairs(batch, [row.get("thought_ids") for row in rows])


def _add_empty_thoughts(batch: ColdStartBatch, starts: list[int]) -> ColdStartBatch:
    """Add each query with `<think></think><emb>`; one that is embedded so already is not forwarded twice."""
    empty = [ids[: start + 1] + ids[-2:] for ids, start in zip(batch.queries, starts, strict=True)]
    further = [i for i, ids in enumerate(batch.queries) if ids != empty[i]]
    places = list(range(len(empty)))
    for place, i in enumerate(further, start=len(empty)):
        places[i] = place
    return batch._replace(without_thought=[empty[i] for i in further], embedded_without=places)


def _add_thought_pairs(batch: ColdStartBatch, thoughts: Sequence[list[int] | None]) -> ColdStartBatch:
    """Add the thoughts as items that are relevant to their queries.

    Equal thoughts are the same item: neither is a negative of the other's query.
    """
    owners = [i for i, ids in enumerate(thoughts) if ids]
    if not owners:
        return batch
    keys = [identity("thought", *map(str, ids)) if ids else NO_ITEM for ids in thoughts]
    return batch._replace(
        items=batch.items + [ids for ids in thoughts if ids],
        item_keys=batch.item_keys + [keys[i] for i in owners],
        known=np.concatenate([batch.known, np.array(keys)[:, None]], axis=1),
        thought_pairs=[(i, len(batch.items) + place) for place, i in enumerate(owners)],
    )


def accumulate_gradients(
    batch: ColdStartBatch,
    settings: ColdStartConfig,
    forward: Callable[..., EncoderOutput],
    step_backward: Backward,
    device: torch.device,
    observer: GradNormObserver | None = None,
) -> dict[str, float]:
    """Back-propagate one step's loss, in chunks; return the global `info_nce`, and `info_nce_empty` and `sft` if any.

    L = info_nce_weight · (L_InfoNCE + empty_weight · L_InfoNCE without thoughts) + sft_weight · L_SFT. Both InfoNCE
    losses contrast with the same items. With Matryoshka dimensions each is the mean over the whole embedding and its
    shortened forms (arXiv 2205.13147); with thought pairs it is the mean over all pairs.

    Args:
        forward: Sequences → EncoderOutput; with `observer` it must accept `observe` too, see `encode`.
        observer: records the gradient of each loss.
    """
    objective = _Objective(batch, settings, device)
    count = len(batch.query_side)
    parts = make_chunks(batch.query_side, batch.query_spans, 0, settings.chunk_tokens, device)
    parts += make_chunks(batch.items, None, count, settings.chunk_tokens, device)
    observed = observing(forward, observer)
    cached_backward(
        parts, observed, objective.contrastive_loss, objective.sft_loss, step_backward, settings.graph_tokens
    )
    return objective.values()


def accumulate_sft_gradients(
    batch: ColdStartBatch,
    settings: ColdStartConfig,
    forward: Callable[..., EncoderOutput],
    step_backward: Backward,
    device: torch.device,
    observer: GradNormObserver | None = None,
) -> dict[str, float]:
    """Back-propagate L_SFT alone, whatever its weight, over the batch's queries; return the global `sft`.

    Arguments as for `accumulate_gradients`.
    """
    objective = _Objective(batch, settings.model_copy(update={"sft_weight": 1.0}), device)
    parts = make_chunks(batch.queries, batch.scored_spans, 0, settings.chunk_tokens, device)
    observed = observing(forward, observer)
    for i, part in enumerate(parts):
        loss = objective.sft_loss(observed(part.sequences), part)
        assert loss is not None  # every chunk of queries is scored
        step_backward(loss, i == len(parts) - 1)
    return {"sft": objective.values()["sft"]}


def observing(
    forward: Callable[..., EncoderOutput], observer: GradNormObserver | None
) -> Callable[[Sequences], EncoderOutput]:
    """Return `forward` with the observer, if there is one."""
    return forward if observer is None else lambda sequences: forward(sequences, observe=observer.record)


class _Objective:
    """The loss of one step: `contrastive_loss` of all embeddings, and `sft_loss` of each chunk."""

    def __init__(self, batch: ColdStartBatch, settings: ColdStartConfig, device: torch.device) -> None:
        self.batch, self.settings = batch, settings
        size, pairs = len(batch.queries), batch.thought_pairs
        self.owners = torch.tensor([*range(size), *(query for query, _ in pairs)], device=device)  # [B + T]
        self.positives = torch.tensor([*range(size), *(item for _, item in pairs)], device=device)
        self.keys = torch.tensor(batch.item_keys, device=device)
        self.known = torch.from_numpy(batch.known).to(device)[self.owners]
        scored = [end - start for start, end in batch.scored_spans or []]
        supervised = sum(scored) if settings.sft_mean == "token" else sum(length > 0 for length in scored)
        self.count = sum_over_ranks(torch.tensor(float(supervised), device=device))
        self.sums = dict.fromkeys(("info_nce", "info_nce_empty", "sft"), torch.zeros((), device=device))

    def contrastive_loss(self, embeddings: Tensor) -> Tensor:
        """Return the InfoNCE losses of embeddings [B + E + M, H], weighted and summed."""
        items = embeddings[len(self.batch.query_side) :]
        loss = self._info_nce(embeddings[self.owners], items)
        self.sums["info_nce"] = loss.detach()
        if self.batch.embedded_without is not None:
            places = torch.tensor(self.batch.embedded_without, device=embeddings.device)
            empty = self._info_nce(embeddings[places][self.owners], items)
            self.sums["info_nce_empty"] = empty.detach()
            loss = loss + self.settings.empty_weight * empty
        return self.settings.info_nce_weight * loss

    def _info_nce(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return InfoNCE of queries [B + T, H] against items [M, H], the mean over the trained dimensions."""
        views = [(queries, items), *((truncate(queries, d), truncate(items, d)) for d in self.settings.matryoshka)]
        terms = [info_nce(*view, self.positives, self.keys, self.known, self.settings.temperature) for view in views]
        return torch.stack(terms).mean()

    def sft_loss(self, encoded: EncoderOutput, part: Chunk) -> Tensor | None:
        """Return the SFT loss of a chunk, weighted; None for items."""
        if encoded.log_probs is None or part.sequences.scored is None:
            return None
        term = sft(encoded.log_probs, part.sequences.scored, self.count)
        self.sums["sft"] = self.sums["sft"] + term.detach()
        return self.settings.sft_weight * term

    def values(self) -> dict[str, float]:
        """Return the global losses by name, without their weights; every rank must call."""
        means = (sum_over_ranks(torch.stack([*self.sums.values()])) / world_size()).tolist()
        named = dict(zip(self.sums, means, strict=True))
        if self.batch.embedded_without is None:
            del named["info_nce_empty"]
        if self.batch.scored_spans is None:
            del named["sft"]
        return named
