"""Frozen lower layers: they and the embeddings stay as they were, and cost nothing in the backward pass.

Trained are the layers above them, the last norm, and the rows of the control tokens, which are new to the model. All
other rows of the embeddings and of the head are frozen, so no gradient of the size of the vocabulary is ever built.

A tied row is read twice: as the input, and by the head. Both ends read its present value, so a folder that ties its
embeddings behaves exactly as the model did in training. In the backward pass the input end is a constant, and the
row's gradient is the head's alone. So nothing below the first trained layer needs a gradient: autograd keeps no
activations there and computes nothing. With the gradient of the input end, the backward would run through the
activations of all frozen layers for three rows: with 18 of 30 layers frozen a step takes 54 passes of a layer without
it (30 forward, 2 × 12 backward), and 72 with it. The price: without a loss at the head (`objective: direct`) the rows
stay as they are.

The rows are a parameter of their own, but a state dict has the names and the full tables of an ordinary model, in
both directions: folders, weight syncs and checkpoints do not know of them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lrem.errors import ConfigError
from lrem.modeling.model import ReasoningEmbedder

ROWS, IDS = "control_rows", "control_ids"


def check_freezable(config: PretrainedConfig, layers: int) -> None:
    """Raise ConfigError if no layer of a model with this configuration would be left to train."""
    if layers and layers >= config.num_hidden_layers:
        raise ConfigError(
            f"freeze_layers={layers}: the model has {config.num_hidden_layers} layers, so at most "
            f"{config.num_hidden_layers - 1} can be frozen"
        )


def freeze_lower_layers(model: ReasoningEmbedder, layers: int, train_rows: bool = True) -> None:
    """Freeze the lowest `layers` layers and the embeddings, in place; `<think>`, `</think>` and `<emb>` stay trained.

    Args:
        train_rows: False if no loss reads the head: then the rows of the three are frozen too.

    Raises:
        ConfigError: see `check_freezable`.
    """
    renderer = model.renderer
    freeze(model.lm, layers, [renderer.think, renderer.close, renderer.emb] if train_rows else [])


def freeze(lm: PreTrainedModel, layers: int, tokens: Sequence[int]) -> None:
    """Freeze a language model likewise. tokens: ids whose rows stay trained.

    Raises:
        ConfigError: see `check_freezable`.
    """
    check_freezable(lm.config, layers)
    embedding, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    tied = head.weight is embedding.weight
    for module in (embedding, head, *lm.base_model.layers[:layers]):
        module.requires_grad_(False)
    if not tokens:
        return
    rows = nn.Parameter(head.weight.detach()[list(tokens)].clone())
    for module in (head, embedding) if tied else (head,):  # ZeRO-3 gathers a parameter for the modules that hold it
        module.register_parameter(ROWS, rows)
        module.register_buffer(IDS, torch.tensor(tokens, device=head.weight.device), persistent=False)
    if tied:
        embedding.register_forward_hook(_read_rows)
    head.register_forward_hook(_score_rows)
    lm.register_state_dict_post_hook(_merge_rows)
    lm.register_load_state_dict_pre_hook(_split_rows)


def _read_rows(embedding: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Put the present rows where the input [B, L] has their tokens; no gradient goes back through them."""
    matches = inputs[0][..., None] == embedding.get_buffer(IDS)  # [B, L, K]
    rows = embedding.get_parameter(ROWS).detach()[matches.int().argmax(-1)]  # [B, L, H]
    return torch.where(matches.any(-1, keepdim=True), rows.to(output.dtype), output)


def _score_rows(head: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """Replace the logits [S, V] of the rows' tokens by those of the trained rows."""
    return output.index_copy_(-1, head.get_buffer(IDS), F.linear(inputs[0], head.get_parameter(ROWS)))


def _merge_rows(lm: nn.Module, state: dict[str, Any], prefix: str, _: dict[str, Any]) -> None:
    """Write the rows into their tables in a state dict; tied tables stay one tensor."""
    merged: dict[int, Tensor] = {}
    for name, ids in _row_names(lm, prefix):
        weight = f"{name.removesuffix(ROWS)}weight"
        table = state[weight]
        if not table.numel():  # ZeRO-3 saves shards, and restores them by the parameters' own names
            continue
        address = table.data_ptr()
        if address not in merged:
            merged[address] = table.detach().index_copy(0, ids, state[name].detach())
        state[weight] = merged[address]
        del state[name]


def _split_rows(lm: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take the rows out of the tables of an ordinary state dict."""
    for name, ids in _row_names(lm, prefix):
        table = state.get(f"{name.removesuffix(ROWS)}weight")
        if name not in state and table is not None:
            state[name] = table[ids.to(table.device)]


def _row_names(lm: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of every copy of the rows in a state dict, and the rows' token ids."""
    for path, module in lm.named_modules():
        if hasattr(module, ROWS):
            yield f"{prefix}{path}.{ROWS}", module.get_buffer(IDS)
