"""A policy's weights on their way from the trainer to the actors, through Ray's object store.

Tensors travel as byte arrays: Ray writes these to shared memory once, and every actor of a node reads them there.
NCCL between GPUs would be another module with the same two ends; the project has had no GPU to write it on.
"""

import warnings

import numpy as np
import torch

PackedState = list[tuple[str, str, tuple[int, ...], np.ndarray]]  # name, dtype, shape, bytes


def pack_state(state: dict[str, torch.Tensor]) -> PackedState:
    """A state dict as bytes, in its order; CPU tensors are not copied.

    >>> [(name, kind, shape, len(data)) for name, kind, shape, data in pack_state({"w": torch.zeros(2, 3)})]
    [('w', 'float32', (2, 3), 24)]
    """
    return [
        (
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(),
        )
        for name, tensor in state.items()
    ]


def unpack_state(weights: PackedState) -> list[tuple[str, torch.Tensor]]:
    """The named tensors, over the same memory: they are to be read only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return [
            (name, torch.from_numpy(data).view(getattr(torch, kind)).reshape(shape))
            for name, kind, shape, data in weights
        ]


def state_checksum(weights: PackedState) -> int:
    """The sum of all bytes, each weighted by its tensor's place: any byte that differs alone changes it.

    >>> one, other = pack_state({"w": torch.tensor([1.0, 2.0])}), pack_state({"w": torch.tensor([1.0, 2.5])})
    >>> state_checksum(one) == state_checksum(one), state_checksum(one) == state_checksum(other)
    (True, False)
    """
    total = 0
    for place, (_, _, _, data) in enumerate(weights, start=1):
        whole = len(data) // 4 * 4  # four bytes at a time: memory speed
        total += place * (
            int(data[:whole].view(np.uint32).sum(dtype=np.uint64)) + int(data[whole:].sum(dtype=np.uint64))
        )
    return total % 2**63
