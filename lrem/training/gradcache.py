"""Contrastive batches far beyond memory: embed in chunks, take the loss once, back-propagate chunk by chunk.

The loss needs every embedding of the batch, but not their activations. So embeddings are computed chunk by chunk, the
loss gives the gradient of each embedding, and each chunk is back-propagated with that gradient as its target. The
graphs of as many chunks as memory allows are kept; the others are forwarded a second time, from the random state of
the first. Source: GradCache (Gao et al., arXiv 2101.06983). Keeping graphs is our addition: with all of them kept,
nothing is computed twice.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrem.modeling.encoding import EncoderOutput
from lrem.modeling.sequences import Group, Sequences, pack_groups, pad
from lrem.training.batching import FORWARD_COST, chunk_by_length
from lrem.training.distributed import max_over_ranks

Backward = Callable[[Tensor, bool], None]  # (loss, is it the step's last)


class Chunk(NamedTuple):
    """One forward: the step's rows whose embeddings it gives [b], and their sequences.

    A stand-in has no rows: it only gives every rank the same number of forward passes.
    """

    rows: Tensor
    sequences: Sequences

    @property
    def tokens(self) -> int:
        """Padded size, b × L."""
        return self.sequences.ids.numel()

    def to(self, device: torch.device) -> "Chunk":
        """Return the chunk on another device."""
        return Chunk(self.rows.to(device), self.sequences.to(device))


def make_chunks(
    rows: Sequence[list[int]],
    scored_spans: Sequence[tuple[int, int]] | None,
    first: int,
    tokens: int,
    device: torch.device,
) -> list[Chunk]:
    """Split one side of a step into chunks of at most `tokens` padded tokens, equally many on every rank.

    ZeRO-3 needs equal counts: each forward gathers weights from all ranks.

    Args:
        rows: token ids of each sequence. scored_spans: see `pad`; None for items.
        first: number of the first row among the step's rows.
    """
    chunks = []
    for chosen, is_stand_in in _equal_chunk_counts([len(row) for row in rows], tokens, device):
        spans = None if scored_spans is None else [(0, 0) if is_stand_in else scored_spans[i] for i in chosen]
        numbers = [] if is_stand_in else [first + i for i in chosen]
        sequences = pad([rows[i] for i in chosen], spans)
        chunks.append(Chunk(torch.tensor(numbers, dtype=torch.long), sequences).to(device))
    return chunks


def make_group_chunks(groups: Sequence[Group], tokens: int, device: torch.device) -> list[Chunk]:
    """Split groups that share a prompt likewise; the step's rows are their completions, numbered from 0."""
    starts = np.cumsum([0, *(len(group.completions) for group in groups)])
    chunks = []
    for chosen, is_stand_in in _equal_chunk_counts([group.size for group in groups], tokens, device):
        numbers = [] if is_stand_in else [row for i in chosen for row in range(starts[i], starts[i + 1])]
        sequences = pack_groups([groups[i] for i in chosen])
        chunks.append(Chunk(torch.tensor(numbers, dtype=torch.long), sequences).to(device))
    return chunks


def _equal_chunk_counts(lengths: list[int], tokens: int, device: torch.device) -> Iterator[tuple[list[int], bool]]:
    """Yield (rows of a chunk, is it a stand-in), equally many on every rank."""
    cost = FORWARD_COST if device.type == "cpu" else tokens  # a GPU is fastest with chunks that are full
    count = max_over_ranks(len(chunk_by_length(lengths, tokens, forward_cost=cost)), device)
    groups = chunk_by_length(lengths, tokens, count, cost)
    yield from ((group, False) for group in groups)
    yield from (([0], True) for _ in range(count - len(groups)))


def cached_backward(
    chunks: Sequence[Chunk],
    forward: Callable[[Sequences], EncoderOutput],
    contrastive_loss: Callable[[Tensor], Tensor],
    chunk_loss: Callable[[EncoderOutput, Chunk], Tensor | None],
    step_backward: Backward,
    graph_tokens: int | None = None,
) -> Tensor:
    """Accumulate the gradient of contrastive_loss(all embeddings) + Σ chunk_loss(chunk).

    Args:
        chunks: the step's chunks; their rows are 0 … R-1, each once.
        forward: the model, or an engine around it; called with and without gradient.
        contrastive_loss: embeddings [R, H] → this rank's share of the loss.
        chunk_loss: a loss of one chunk alone, called once per chunk, after `contrastive_loss`; may return None.
        step_backward: back-propagates the loss of one or more chunks; its flag is True on the last call only.
        graph_tokens: padded tokens whose graphs may be alive at once; None: all.

    Returns:
        The value of `contrastive_loss`.
    """
    # the fewest graphs that any rank keeps: ranks must go forward and backward in step
    device = chunks[0].sequences.ids.device
    kept_from = max_over_ranks(first_kept_chunk([chunk.tokens for chunk in chunks], graph_tokens), device)
    outputs, states = _first_pass(chunks, forward, kept_from)
    rows = torch.cat([chunk.rows for chunk in chunks])
    values = torch.cat([output.embeddings[: len(chunk.rows)] for output, chunk in zip(outputs, chunks, strict=True)])
    embeddings = torch.empty_like(values).index_copy_(0, rows, values.detach()).requires_grad_()  # [R, H]
    contrast = contrastive_loss(embeddings)
    (gradient,) = torch.autograd.grad(contrast, embeddings)

    def loss_of(output: EncoderOutput, chunk: Chunk) -> Tensor:
        own = chunk_loss(output, chunk)
        loss = (output.embeddings[: len(chunk.rows)] * gradient[chunk.rows]).sum()
        return loss if own is None else loss + own

    # one backward for all kept graphs: under ZeRO-2 and -3 each backward costs a reduction over the ranks
    kept = [loss_of(outputs[i], chunks[i]) for i in range(kept_from, len(chunks))]
    step_backward(torch.stack(kept).sum(), kept_from == 0)
    del kept, outputs[kept_from:]
    for i, (state, chunk) in enumerate(zip(states, chunks[:kept_from], strict=True)):
        step_backward(loss_of(state.replay(forward, chunk.sequences), chunk), i == kept_from - 1)
    return contrast.detach()


def _first_pass(
    chunks: Sequence[Chunk], forward: Callable[[Sequences], EncoderOutput], kept_from: int
) -> tuple[list[EncoderOutput], list["_RandomState"]]:
    """Forward every chunk; return the outputs, and the random states of those whose graphs are not kept."""
    states: list[_RandomState] = []
    outputs: list[EncoderOutput] = []
    for i, chunk in enumerate(chunks):
        if i < kept_from:
            states.append(_RandomState())
            with torch.no_grad():  # without the language-model head: the second pass computes its losses
                outputs.append(forward(chunk.sequences._replace(scored=None)))
        else:
            outputs.append(forward(chunk.sequences))
    return outputs, states


def first_kept_chunk(tokens: list[int], limit: int | None) -> int:
    """Return the first of the trailing chunks whose graphs are kept; the last one's always is."""
    if limit is None:
        return 0
    start, used = len(tokens) - 1, tokens[-1]
    while start > 0 and used + tokens[start - 1] <= limit:
        start -= 1
        used += tokens[start]
    return start


class _RandomState:
    """The state of the random generators before a forward, to repeat it with the same draws."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def replay(self, forward: Callable[[Sequences], EncoderOutput], sequences: Sequences) -> EncoderOutput:
        """Run `forward` from this state, and restore the current state after it."""
        devices = [] if self.cuda is None else [torch.cuda.current_device()]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            return forward(sequences)
