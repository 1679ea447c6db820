"""How strongly each loss pulls: the norm of its gradient where the losses part, at the last layer's states."""

import torch
from torch import Tensor

from lrem.training.distributed import sum_over_ranks, world_size


class GradNormObserver:
    """The squared gradients of one step, summed by the loss that reads the states.

    Measuring them there costs nothing and works under every ZeRO stage; the norm over all parameters is the
    optimiser's. The weights of the losses are included. Source: GradNorm (arXiv 1711.02257).
    """

    def __init__(self) -> None:
        self._squares: dict[str, Tensor] = {}

    def record(self, states: Tensor, loss: str) -> None:
        """Add the squared gradient of `states` once it is known; a no-op for a forward without gradient."""
        if states.requires_grad:
            states.register_hook(lambda gradient: self._record_grad_norm(gradient, loss))

    def _record_grad_norm(self, gradient: Tensor, loss: str) -> None:
        self._squares[loss] = self._squares.get(loss, 0) + gradient.float().square().sum()

    def norms(self, device: torch.device) -> dict[str, float]:
        """Return `grad_norm_LOSS` of each loss over the global batch; every rank must call.

        Args:
            device: one that the process group can use.
        """
        names = sorted(self._squares)  # the same on every rank: their chunks are alike
        sums = sum_over_ranks(torch.stack([self._squares[name].to(device) for name in names]))
        norms = (sums.sqrt() / world_size()).tolist()
        return {f"grad_norm_{name}": norm for name, norm in zip(names, norms, strict=True)}
