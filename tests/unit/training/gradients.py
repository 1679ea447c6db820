"""Gradients as one vector, and how far two of them differ."""

from typing import Any

import torch

from lrem.modeling.model import ReasoningEmbedder


def gradient_of(model: ReasoningEmbedder) -> torch.Tensor:
    """Return the gradient in the model's parameters."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


def full_gradient(engine: Any) -> torch.Tensor:
    """Return the whole gradient that a DeepSpeed engine's optimiser is about to use, on every rank."""
    from deepspeed.utils import safe_get_full_grad

    return torch.cat([safe_get_full_grad(p).flatten().float().cpu() for p in engine.module.parameters()])


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ‖actual − expected‖ / ‖expected‖."""
    return ((actual - expected).norm() / expected.norm()).item()
