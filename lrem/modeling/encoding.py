"""One forward pass of the language model: embeddings, and log-probabilities of the scored tokens."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from lrem.modeling.sequences import Sequences
from lrem.modeling.template import Renderer

SHORT = 256  # tokens; for short sequences the backward of fused attention is slow on a CPU
StateObserver = Callable[[Tensor, str], None]  # (states of the last layer, name of the loss that reads them)


class EncoderOutput(NamedTuple):
    """Embeddings [B, H], and log-probabilities [B, L] in nats, zero where `scored` is False; None without `scored`.

    For packed groups with R completions: [R, H], and [R, T] by position in the completion.
    """

    embeddings: Tensor
    log_probs: Tensor | None = None


def use_fast_attention(lm: PreTrainedModel, renderer: Renderer) -> None:
    """Use eager attention in training on a CPU if no sequence within the template's limits exceeds SHORT tokens."""
    template, prompt = renderer.template, len(renderer.query_prompt(""))
    longest = prompt + max(template.max_query_tokens + template.budget, template.max_item_tokens)
    if not torch.cuda.is_available() and longest <= SHORT:
        lm.set_attn_implementation("eager")


def encode(
    lm: PreTrainedModel, batch: Sequences, temperature: float = 1.0, observe: StateObserver | None = None
) -> EncoderOutput:
    """Run one pass for embeddings and, if `batch.scored` is given, for the scored tokens' log-probabilities.

    The language-model head runs on the scored positions only: 151k logits for every token would exhaust the memory of
    a small GPU.

    Args:
        temperature: divides the logits.
        observe: called with the states that each loss reads, `info_nce` and `sft`.
    """
    tree = batch.tree
    where = {} if tree is None else {"attention_mask": _block_mask(lm, tree.mask), "position_ids": tree.positions}
    hidden = lm.base_model(input_ids=batch.ids, use_cache=False, **where).last_hidden_state  # [B, L, H]
    rows = torch.arange(len(batch.lengths), device=hidden.device)
    pooled = hidden[rows, batch.lengths - 1] if tree is None else hidden[tree.ends[:, 0], tree.ends[:, 1]]  # [R, H]
    if observe:
        observe(pooled, "info_nce")
    embeddings = F.normalize(pooled.float(), dim=-1)
    if batch.scored is None:
        return EncoderOutput(embeddings)
    row, column = batch.scored.nonzero(as_tuple=True)  # [S]
    states = hidden[row, column - 1 if tree is None else tree.sources]  # [S, H]
    if observe:
        observe(states, "sft")
    logits = lm.get_output_embeddings()(states).float()  # [S, V]
    if temperature != 1.0:
        logits = logits / temperature
    chosen = -F.cross_entropy(logits, batch.ids[row, column], reduction="none")  # [S]
    if tree is not None:
        longest = int(tree.slots[:, 1].max()) + 1 if len(tree.slots) else 1
        log_probs = chosen.new_zeros(len(tree.ends), longest)
        return EncoderOutput(embeddings, log_probs.index_put((tree.slots[:, 0], tree.slots[:, 1]), chosen))
    log_probs = torch.zeros(batch.ids.shape, dtype=chosen.dtype, device=chosen.device)
    return EncoderOutput(embeddings, log_probs.index_put((row, column), chosen))


def _block_mask(lm: PreTrainedModel, mask: Tensor) -> Tensor:
    """Convert a [B, 1, L, L] bool mask for the model's attention: sdpa takes bools, eager adds numbers to scores."""
    kind = lm.config._attn_implementation
    if kind == "sdpa":
        return mask
    if kind != "eager":
        raise ValueError(f"attention '{kind}' takes no block mask: load the model with sdpa or eager attention")
    return torch.where(mask, 0.0, torch.finfo(lm.dtype).min).to(lm.dtype)
