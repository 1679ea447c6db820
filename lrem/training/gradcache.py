"""Contrastive batches far beyond memory: embed in chunks, take the loss once, go back through each chunk.

The loss needs every embedding of the batch but not their activations. So embeddings are computed chunk by
chunk, the loss gives the gradient of each embedding, and each chunk is then back-propagated with that
gradient as its target. The graphs of as many chunks as memory allows are kept; the others are forwarded a
second time, under the random state of the first. Source: GradCache (Gao et al., arXiv 2101.06983); keeping
graphs is ours: with all of them kept nothing is computed twice.

Knows tensors and callables; does not know DeepSpeed: the caller says what forward and backward are.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrem.modeling.encoding import EncoderOutput
from lrem.modeling.sequences import Group, Sequences, pack_groups, pad
from lrem.training.batching import chunk_by_length
from lrem.training.distributed import max_over_ranks

Backward = Callable[[Tensor, bool], None]  # (loss, is it the step's last)


class Chunk(NamedTuple):
    """One forward: `rows` of the step whose embeddings it gives [b], and their sequences.

    No rows: a stand-in that only keeps ranks alike.
    """

    rows: Tensor
    sequences: Sequences

    @property
    def tokens(self) -> int:
        """Padded size, b × L."""
        return self.sequences.ids.numel()

    def to(self, device: torch.device) -> "Chunk":
        """The same on another device."""
        return Chunk(self.rows.to(device), self.sequences.to(device))


def make_chunks(
    rows: Sequence[list[int]],
    scored: Sequence[tuple[int, int]] | None,
    first: int,
    tokens: int,
    device: torch.device,
) -> list[Chunk]:
    """Cut one side of a step into chunks of at most `tokens` padded tokens, as many on every rank.

    Equal counts are what ZeRO-3 needs: each forward gathers weights from all ranks.

    Args:
        rows: token ids of each sequence. scored: see `pad`; None for items.
        first: number of the first row among the step's rows.
    """
    parts = []
    for chosen, stand_in in _equal_chunk_counts([len(row) for row in rows], tokens, device):
        spans = None if scored is None else [(0, 0) if stand_in else scored[i] for i in chosen]
        numbers = [] if stand_in else [first + i for i in chosen]
        sequences = pad([rows[i] for i in chosen], spans)
        parts.append(Chunk(torch.tensor(numbers, dtype=torch.long), sequences).to(device))
    return parts


def make_group_chunks(groups: Sequence[Group], tokens: int, device: torch.device) -> list[Chunk]:
    """The same for groups that share a prompt; a step's rows are their completions, in order from 0."""
    starts = np.cumsum([0, *(len(group.completions) for group in groups)])
    parts = []
    for chosen, stand_in in _equal_chunk_counts([group.size for group in groups], tokens, device):
        numbers = [] if stand_in else [row for i in chosen for row in range(starts[i], starts[i + 1])]
        sequences = pack_groups([groups[i] for i in chosen])
        parts.append(Chunk(torch.tensor(numbers, dtype=torch.long), sequences).to(device))
    return parts


def _equal_chunk_counts(lengths: list[int], tokens: int, device: torch.device) -> Iterator[tuple[list[int], bool]]:
    """(rows of a chunk, is it a stand-in): as many chunks on every rank."""
    count = max_over_ranks(len(chunk_by_length(lengths, tokens)), device)
    groups = chunk_by_length(lengths, tokens, at_least=count)
    yield from ((group, False) for group in groups)
    yield from (([0], True) for _ in range(count - len(groups)))


def cached_backward(
    parts: Sequence[Chunk],
    forward: Callable[[Sequences], EncoderOutput],
    contrast: Callable[[Tensor], Tensor],
    extra: Callable[[EncoderOutput, Chunk], Tensor | None],
    step_backward: Backward,
    graph_tokens: int | None = None,
) -> Tensor:
    """Accumulate the gradient of contrast(all embeddings) + Σ extra(chunk); returns the value of `contrast`.

    Args:
        parts: the step's chunks; their rows are 0 … R-1, each once.
        forward: the model, or an engine around it; called with and without gradient.
        contrast: embeddings [R, H] → this rank's share of the loss.
        extra: a loss that needs one chunk alone, asked for once a chunk and after `contrast`; None where it has none.
        step_backward: back-propagates the loss of one or more chunks; its flag is True on the last call alone.
        graph_tokens: padded tokens whose graphs may be alive at once; None: all.
    """
    # the fewest that any rank keeps: ranks have to forward and go back in step
    device = parts[0].sequences.ids.device
    kept_from = max_over_ranks(first_kept_chunk([part.tokens for part in parts], graph_tokens), device)
    states: list[_RandomState] = []
    first: list[EncoderOutput] = []
    for i, part in enumerate(parts):
        if i < kept_from:
            states.append(_RandomState())
            with torch.no_grad():  # without the language-model head: its losses are the second pass's
                first.append(forward(part.sequences._replace(scored=None)))
        else:
            first.append(forward(part.sequences))
    rows = torch.cat([part.rows for part in parts])
    found = torch.cat([encoded.embeddings[: len(part.rows)] for encoded, part in zip(first, parts, strict=True)])
    embeddings = torch.empty_like(found).index_copy_(0, rows, found.detach()).requires_grad_()  # [R, H]
    value = contrast(embeddings)
    (gradient,) = torch.autograd.grad(value, embeddings)

    def loss_of(encoded: EncoderOutput, part: Chunk) -> Tensor:
        alone = extra(encoded, part)
        loss = (encoded.embeddings[: len(part.rows)] * gradient[part.rows]).sum()
        return loss if alone is None else loss + alone

    # one backward for all that was kept: under ZeRO-2 and -3 each costs a reduction over the ranks
    kept = [loss_of(first[i], parts[i]) for i in range(kept_from, len(parts))]
    step_backward(torch.stack(kept).sum(), kept_from == 0)
    del kept, first[kept_from:]
    for i, (state, part) in enumerate(zip(states, parts[:kept_from], strict=True)):
        step_backward(loss_of(state.replay(forward, part.sequences), part), i == kept_from - 1)
    return value.detach()


def first_kept_chunk(tokens: list[int], limit: int | None) -> int:
    """First of the trailing chunks whose graphs are kept; at least the last one's always is."""
    if limit is None:
        return 0
    start, used = len(tokens) - 1, tokens[-1]
    while start > 0 and used + tokens[start - 1] <= limit:
        start -= 1
        used += tokens[start]
    return start


class _RandomState:
    """The random generators before a forward, to run it again alike."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def replay(self, forward: Callable[[Sequences], EncoderOutput], sequences: Sequences) -> EncoderOutput:
        """Run `forward` from this state; the present one goes on afterwards."""
        devices = [] if self.cuda is None else [torch.cuda.current_device()]
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu)
            if self.cuda is not None:
                torch.cuda.set_rng_state(self.cuda)
            return forward(sequences)
