"""The collectives of losses and batches, exact in value and gradient; identities without a process group."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from lrem.errors import RolloutError

T = TypeVar("T")


def world_size() -> int:
    """Return the number of ranks, 1 outside a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this rank, 0 outside a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


class _Gather(torch.autograd.Function):
    """Concatenates over ranks; the backward sums every rank's gradient for the local rows.

    Trainers that keep only the local part scale the gradient by 1/W (see docs/decisions.md).
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return torch.cat(_all_gather_padded(local, sizes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        summed = grads[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed.split(ctx.sizes)[rank()], None


def row_counts(local: Tensor) -> list[int]:
    """Return the number of rows on each rank, in rank order."""
    if world_size() == 1:
        return [local.shape[0]]
    counts = torch.zeros(world_size(), dtype=torch.long, device=local.device)
    counts[rank()] = local.shape[0]
    return [int(count) for count in sum_over_ranks(counts)]


def gather_rows(local: Tensor) -> Tensor:
    """Return the rows of every rank in rank order, [n_r, …] → [Σ n_r, …]; ranks may have different row counts.

    Differentiable for floating-point tensors.
    """
    if world_size() == 1:
        return local
    sizes = row_counts(local)
    if local.is_floating_point():
        return _Gather.apply(local, sizes)
    return torch.cat(_all_gather_padded(local, sizes))


def _all_gather_padded(local: Tensor, sizes: list[int]) -> list[Tensor]:
    """Gather rows padded to the largest rank, because collectives need equal shapes; remove the padding after."""
    padded = local.new_zeros((max(sizes), *local.shape[1:]))
    padded[: local.shape[0]] = local
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def sum_over_ranks(value: Tensor) -> Tensor:
    """Return the sum over ranks, without gradient."""
    summed = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(summed)
    return summed


def gather_objects(local: T) -> list[T]:
    """Return every rank's object, in rank order; for a few small ones: they are pickled."""
    if world_size() == 1:
        return [local]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, local)
    return gathered


def max_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest of the ranks' values; `device` is one that the process group can use."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def run_on_first_rank(work: Callable[[], T]) -> T:
    """Run `work` on rank 0, and return its result on every rank.

    Raises:
        RolloutError: `work` failed on rank 0 with any error, whose message it keeps; every rank raises it.
    """
    result: list[Any] = [None, None]  # value, error
    if rank() == 0:
        try:
            result[0] = work()
        except Exception as error:  # of any type: the other ranks wait for the broadcast
            result[1] = f"{error}"
    if world_size() > 1:
        dist.broadcast_object_list(result)
    if result[1] is not None:
        raise RolloutError(result[1])
    return cast(T, result[0])
