"""The learning rate's schedule: linear warm-up, then a cosine. Source: paper, "Stage 1"."""

import math


def cosine_with_warmup(step: int, warmup: int, steps: int) -> float:
    """Return the share of the peak learning rate that a step, counted from 0, trains with.

    The first step has 1 / warmup, not 0 as in transformers, and the last is above 0 too: every step trains.

    Args:
        warmup: steps until the peak, at least 1. steps: of the whole run.

    >>> [round(cosine_with_warmup(step, 2, 5), 2) for step in range(6)]
    [0.5, 1.0, 0.85, 0.5, 0.15, 0.0]
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step + 1 - warmup) / (steps + 1 - warmup)
    return (1 + math.cos(math.pi * min(progress, 1))) / 2
