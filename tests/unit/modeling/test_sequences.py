"""A packed group gives what its completions give alone."""

import pytest
import torch

from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import Group, pack_groups, pad


def groups_of(model: ReasoningEmbedder) -> list[Group]:
    """Two groups of unlike lengths; the second's last completion has two forced tokens at its end."""
    renderer = model.renderer
    texts = {"red coat": ["wool, winter", "", "linen"], "a warm hat for long walks": ["hat, wool hat, silk", "coat"]}
    made = []
    for query, reasonings in texts.items():
        completions = [renderer.completion(renderer.reasoning_ids(text)) for text in reasonings]
        made.append(Group(renderer.query_prompt(query), completions, [len(c) for c in completions]))
    made[1].sampled[1] -= 2
    return made


def test_packed_groups_are_their_completions_alone(embedder: ReasoningEmbedder) -> None:
    groups = groups_of(embedder)
    rows = [group.prompt + completion for group in groups for completion in group.completions]
    starts = [len(group.prompt) for group in groups for _ in group.completions]
    sampled = [count for group in groups for count in group.sampled]
    spans = [(start, start + count) for start, count in zip(starts, sampled, strict=True)]
    with torch.no_grad():
        together, alone = embedder(pack_groups(groups), 0.7), embedder(pad(rows, spans), 0.7)
    assert torch.allclose(together.embeddings, alone.embeddings, atol=1e-6)
    assert together.log_probs.shape == (5, max(sampled))
    for i, (start, end) in enumerate(spans):
        assert torch.allclose(together.log_probs[i, : end - start], alone.log_probs[i, start:end], atol=1e-5)
        assert (together.log_probs[i, end - start :] == 0).all()


def test_a_packed_gradient_is_the_sum_of_its_completions(embedder: ReasoningEmbedder) -> None:
    groups = groups_of(embedder)
    rows = [group.prompt + completion for group in groups for completion in group.completions]
    spans = [(len(group.prompt), len(group.prompt) + count) for group in groups for count in group.sampled]
    target = torch.randn(len(rows), embedder.dimension, generator=torch.manual_seed(0))
    found = []
    for batch in (pack_groups(groups), pad(rows, spans)):
        embedder.zero_grad()
        encoded = embedder(batch)
        ((encoded.embeddings * target).sum() + encoded.log_probs.sum()).backward()
        found.append(torch.cat([p.grad.flatten() for p in embedder.parameters() if p.grad is not None]))
    embedder.zero_grad()
    assert ((found[0] - found[1]).norm() / found[1].norm()).item() < 1e-5


def test_the_prompt_stands_once(tiny: ReasoningEmbedder) -> None:
    groups = groups_of(tiny)
    packed = pack_groups(groups)
    assert packed.lengths.tolist() == [group.size for group in groups]
    for row, group in enumerate(groups):
        assert packed.ids[row, : len(group.prompt)].tolist() == group.prompt
    assert packed.scored is not None
    assert packed.tree is not None
    assert int(packed.scored.sum()) == len(packed.tree.sources) == sum(sum(group.sampled) for group in groups)
    with pytest.raises(ValueError, match="shorter"):
        pack_groups([Group([1], [[2]], [])])
