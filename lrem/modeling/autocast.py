"""bfloat16 arithmetic on float32 weights, on a CPU that a measurement finds faster with it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import Sequences

MIN_SPEEDUP = 1.2  # below it, the rounding is not worth it
ROWS, LENGTH, REPEATS = 64, 32, 2  # below a thousand tokens, converting the weights takes most of a forward
UNITS = ("avx512_bf16", "amx_bf16")


def has_bfloat16_units() -> bool:
    """Return True if the CPU multiplies matrices in bfloat16 by itself: AVX512-BF16 or AMX."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(unit, False) for unit in UNITS)


def measure_speedup(model: ReasoningEmbedder) -> float:
    """Return how many times as fast a forward of ROWS texts is under autocast, the best of two; 1.0 on a GPU.

    Without AVX512-BF16 and AMX it measures nothing and returns 1.0: bfloat16 would be emulated.
    """
    if torch.cuda.is_available() or not has_bfloat16_units():  # a model is measured before it moves to its GPU
        return 1.0
    vocabulary = model.lm.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    batch, before = Sequences(ids, torch.full((ROWS,), LENGTH)), model.autocast
    seconds: dict[bool, float] = {}
    for autocast in (True, False):
        model.autocast = autocast
        seconds[autocast] = min(_forward_seconds(model, batch) for _ in range(REPEATS))
    model.autocast = before
    return seconds[False] / seconds[True]


@torch.no_grad()
def _forward_seconds(model: ReasoningEmbedder, batch: Sequences) -> float:
    started = time.perf_counter()
    model(batch)
    return time.perf_counter() - started


@contextmanager
def full_precision(model: ReasoningEmbedder) -> Iterator[None]:
    """Run the model without autocast in a block."""
    before, model.autocast = model.autocast, False
    try:
        yield
    finally:
        model.autocast = before
