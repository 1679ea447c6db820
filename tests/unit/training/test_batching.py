"""Batches and chunks: every row once, whatever the lengths, and as many steps on every rank."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lrem.training.batching import chunk_by_length, epoch_order, step_rows, steps_per_epoch


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 200), st.integers(1, 50))
def test_chunks_hold_every_row_once(lengths: list[int], tokens: int, at_least: int) -> None:
    groups = chunk_by_length(lengths, tokens, at_least)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens for group in groups)
    assert len(groups) >= min(at_least, len(lengths))


@given(st.integers(2, 60), st.integers(1, 5), st.integers(2, 9), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_and_ranks_take_equal_steps(
    rows: int, workers: int, batch: int, epoch: int
) -> None:
    workers = min(workers, rows // 2)
    steps = steps_per_epoch(rows, workers, batch)
    for rank in range(workers):
        share = rows * (rank + 1) // workers - rows * rank // workers
        order = epoch_order(share, 3, epoch, rank)
        parts = [step_rows(order, steps, step) for step in range(steps)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(share))
        assert all(1 <= len(part) <= batch for part in parts)
