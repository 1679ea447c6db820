"""Token ids as tensors: padded rows, or rows with several completions of one prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Tree(NamedTuple):
    """Several completions in one row; each attends to the prompt and to itself, as if it alone followed the prompt.

    owner [B, L] int64: 0 for the prompt, 1 … G for its completions, -1 for padding. positions [B, L] int64.
    ends [R, 2]: (row, column) of each completion's last token. sources [S]: column of the token before each scored
    one. slots [S, 2]: (completion, place within it) of each scored token, in the order of `scored`.
    """

    owner: Tensor
    positions: Tensor
    ends: Tensor
    sources: Tensor
    slots: Tensor

    @property
    def mask(self) -> Tensor:
        """The columns that each token attends to, [B, 1, L, L] bool."""
        length = self.owner.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=self.owner.device).tril()
        own = self.owner[:, :, None] == self.owner[:, None, :]
        return (causal & (own | (self.owner == 0)[:, None, :]))[:, None]


class Sequences(NamedTuple):
    """Right-padded token ids. With causal attention they need no attention mask: padding comes last.

    ids [B, L] int64; lengths [B] int64; scored [B, L] bool, True on tokens whose log-probability counts, or None for
    embeddings alone: then the language-model head does not run. With `tree` a row is a whole group.
    """

    ids: Tensor
    lengths: Tensor
    scored: Tensor | None = None
    tree: Tree | None = None

    def to(self, device: torch.device) -> "Sequences":
        """Return the sequences on another device."""
        scored = None if self.scored is None else self.scored.to(device)
        tree = None if self.tree is None else Tree(*(part.to(device) for part in self.tree))
        return Sequences(self.ids.to(device), self.lengths.to(device), scored, tree)


def pad(rows: Sequence[list[int]], scored_spans: Sequence[tuple[int, int]] | None = None) -> Sequences:
    """Right-pad `rows` of ids to one length; `scored_spans` are [start, end) of each row's scored tokens.

    >>> pad([[5, 6, 7], [8]], [(1, 3), (0, 0)]).ids.tolist()
    [[5, 6, 7], [8, 0, 0]]
    """
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    scored = None if scored_spans is None else torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        if scored is not None and scored_spans is not None:
            start, end = scored_spans[i]
            scored[i, start:end] = True
    return Sequences(ids, lengths, scored)


class Group(NamedTuple):
    """A prompt and its completions; the first `sampled` tokens of each completion were sampled, the rest forced."""

    prompt: list[int]
    completions: list[list[int]]
    sampled: list[int]

    @property
    def size(self) -> int:
        """Tokens of the group in one row."""
        return len(self.prompt) + sum(map(len, self.completions))


def pack_groups(groups: Sequence[Group]) -> Sequences:
    """Return one row per group, with its prompt once: G completions do not cost G times the prompt.

    >>> packed = pack_groups([Group([5, 6], [[7, 8], [9]], [2, 1])])
    >>> packed.ids.tolist(), packed.tree.positions.tolist(), packed.tree.ends.tolist()
    ([[5, 6, 7, 8, 9]], [[0, 1, 2, 3, 2]], [[0, 3], [0, 4]])
    """
    rows = [group.prompt + [token for completion in group.completions for token in completion] for group in groups]
    plain = pad(rows)
    owner, positions = torch.full_like(plain.ids, -1), torch.zeros_like(plain.ids)
    scored = torch.zeros_like(plain.ids, dtype=torch.bool)
    ends: list[tuple[int, int]] = []
    sources: list[int] = []
    slots: list[tuple[int, int]] = []
    for row, group in enumerate(groups):
        start = len(group.prompt)
        owner[row, :start], positions[row, :start] = 0, torch.arange(start)
        for number, (completion, sampled) in enumerate(zip(group.completions, group.sampled, strict=True), start=1):
            end = start + len(completion)
            owner[row, start:end] = number
            positions[row, start:end] = torch.arange(len(completion)) + len(group.prompt)
            scored[row, start : start + sampled] = True
            sources += [len(group.prompt) - 1, *range(start, start + sampled - 1)][:sampled]
            slots += [(len(ends), place) for place in range(sampled)]
            ends.append((row, end - 1))
            start = end
    pairs = torch.tensor(slots, dtype=torch.long).reshape(-1, 2)
    return Sequences(
        plain.ids, plain.lengths, scored, Tree(owner, positions, torch.tensor(ends), torch.tensor(sources), pairs)
    )
