"""Batches and chunks: every row or query once, whatever the lengths, and as many steps on every rank."""

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lrem.training.batching import (
    FORWARD_COST,
    EpochRows,
    chunk_by_length,
    epoch_order,
    shard_bounds,
    step_rows,
    steps_per_epoch,
    visited_rows,
)

KEY = st.integers(0, 2**63 - 1) | st.integers(0, 9)
QUERY_KEYS = st.lists(KEY, min_size=1, max_size=60).map(np.array)
PER_QUERY = st.none() | st.integers(1, 4)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 200), st.integers(1, 50))
def test_chunks_hold_every_row_once(lengths: list[int], tokens: int, at_least: int) -> None:
    groups = chunk_by_length(lengths, tokens, at_least)
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens for group in groups)
    assert len(groups) >= min(at_least, len(lengths))


@given(st.lists(st.integers(1, 900), min_size=1, max_size=9), st.integers(900, 4000))
def test_chunks_have_the_least_padding(lengths: list[int], tokens: int) -> None:
    """Compared with every way to divide the rows, sorted by length, at some of the places between them."""
    ascending = sorted(lengths)

    def cost(groups: list[list[int]]) -> float:
        return sum(len(group) * max(group) + FORWARD_COST for group in groups)

    possible = []
    for bits in range(2 ** (len(ascending) - 1)):
        cuts = [0, *(i for i in range(1, len(ascending)) if bits >> (i - 1) & 1), len(ascending)]
        groups = [ascending[start:end] for start, end in pairwise(cuts)]
        if all(len(group) * max(group) <= tokens for group in groups):
            possible.append(cost(groups))
    assert cost([[lengths[i] for i in group] for group in chunk_by_length(lengths, tokens)]) == min(possible)


@given(st.integers(2, 60), st.integers(1, 5), st.integers(2, 9), st.integers(0, 3))
def test_an_epoch_holds_every_row_once_and_ranks_take_equal_steps(
    rows: int, workers: int, batch: int, epoch: int
) -> None:
    workers = min(workers, rows // 2)
    steps = steps_per_epoch(EpochRows(rows), workers, batch)
    for rank in range(workers):
        share = rows * (rank + 1) // workers - rows * rank // workers
        order = epoch_order(visited_rows(np.zeros(share, np.int64), None, epoch), 3, epoch, rank)
        parts = [step_rows(order, steps, step) for step in range(steps)]
        assert sorted(np.concatenate(parts).tolist()) == list(range(share))
        assert all(1 <= len(part) <= batch for part in parts)


@given(QUERY_KEYS, PER_QUERY, st.integers(0, 5))
def test_an_epoch_visits_as_many_rows_of_each_query(keys: np.ndarray, per_query: int | None, epoch: int) -> None:
    rows = visited_rows(keys, per_query, epoch)
    assert len(set(rows.tolist())) == len(rows) == EpochRows.of(keys, per_query).total
    expected = {key: min(count, per_query or count) for key, count in Counter(keys.tolist()).items()}
    assert Counter(keys[rows].tolist()) == expected


@given(QUERY_KEYS)
def test_each_epoch_takes_the_querys_next_row(keys: np.ndarray) -> None:
    """Rows are numbered within their query in their order; epoch e takes number (e + key) mod n."""
    counts = Counter(keys.tolist())
    rounds = [visited_rows(keys, 1, epoch) for epoch in range(max(counts.values()))]
    for epoch, rows in enumerate(rounds):
        for row in rows.tolist():
            number = keys[:row].tolist().count(keys[row])
            assert number == (epoch + int(keys[row])) % counts[int(keys[row])]
    assert {row for rows in rounds for row in rows.tolist()} == set(range(len(keys)))


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 5), st.integers(2, 9), st.data())
def test_ranks_share_the_queries_and_take_equal_steps(
    queries: int, per_query: int, workers: int, batch: int, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=queries, max_size=queries))
    keys = np.repeat(np.arange(queries), sizes)
    epoch = EpochRows.of(keys, per_query)
    workers = max(1, min(workers, epoch.total // epoch.min_per_rank()))
    if epoch.total < epoch.min_per_rank():
        return  # refused
    steps = steps_per_epoch(epoch, workers, batch)
    seen: Counter[int] = Counter()
    for start, end in pairwise([0, *shard_bounds(keys, per_query, workers), len(keys)]):
        rows = visited_rows(keys[start:end], per_query, 7)
        parts = [step_rows(rows, steps, step) for step in range(steps)]
        assert all(1 <= len(part) <= batch for part in parts)
        assert abs(len(rows) - epoch.total / workers) < per_query
        seen.update(keys[start:end][rows].tolist())
    assert seen == {query: min(size, per_query) for query, size in enumerate(sizes)}  # none on two ranks


def test_an_order_is_a_function_of_seed_epoch_and_rank() -> None:
    orders = {(e, r): epoch_order(np.arange(50), 3, e, r).tolist() for e in (0, 1) for r in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    assert orders[1, 1] == epoch_order(np.arange(50), 3, 1, 1).tolist()
