"""The layers of a model compiled by torch.compile, which fuses their elementwise operations."""

import torch
from transformers import PreTrainedModel

VARIANTS = 64  # all layers share a limit; each is compiled for training and inference, with and without autocast


def compile_layers(lm: PreTrainedModel) -> None:
    """Compile each layer at its first forward, for all sequence lengths; weights and their names stay as they are."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for layer in lm.base_model.layers:
        layer.compile(dynamic=True)
