"""Parts: queries are cut into equal parts in their order, counters add up, and finished parts need no Ray."""

import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from lrem.config import load_config
from lrem.data.counters import Counters, add_counters
from lrem.data.files import write_parquet
from ray_apps.curation.resumable import PartStep, cut_into_parts, is_cut, list_parts, read_parts, run_step


def table(values: range) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64())})


def unused_worker() -> None:
    raise AssertionError("no part is missing")


@settings(max_examples=40)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(1, 12))
def test_parts_are_equal_however_the_rows_arrive(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int
) -> None:
    folder, total = tmp_path_factory.mktemp("cut"), sum(sizes)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    count = cut_into_parts((table(range(start, end)) for start, end in pairwise([0, *ends])), folder, rows)
    parts = [part["n"].to_pylist() for part in read_parts(folder)]
    assert parts == [list(range(start, min(start + rows, total))) for start in range(0, total, rows)]
    assert count == len(list_parts(folder)) == -(-total // rows)
    assert json.loads((folder / "cut.json").read_text()) == {"parts": count}


def test_an_interrupted_cut_is_repeated(tmp_path: Path) -> None:
    def breaking() -> object:
        yield table(range(10))
        raise OSError("disk full")

    folder = tmp_path / "input"
    with pytest.raises(OSError, match="disk full"):
        cut_into_parts(breaking(), folder, 3)  # type: ignore[arg-type]
    assert len(list_parts(folder)) == 3
    assert not is_cut(folder)
    cut_into_parts([table(range(4))], folder, 3)
    assert is_cut(folder)


COUNTERS = st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 9), max_size=2) | st.fixed_dictionaries(
    {"list": st.lists(st.integers(0, 9), min_size=3, max_size=3)}
)


@given(COUNTERS, COUNTERS, COUNTERS)
def test_counters_add_up_in_any_order(one: Counters, two: Counters, three: Counters) -> None:
    assert add_counters(add_counters(one, two), three) == add_counters(three, add_counters(two, one))
    assert add_counters(one, {}) == add_counters({}, one) == one


def test_counters_of_different_lengths_do_not_add_up() -> None:
    with pytest.raises(ValueError, match="shorter"):
        add_counters({"list": [1, 2]}, {"list": [1]})


def test_a_step_without_missing_parts_starts_no_ray(tmp_path: Path) -> None:
    source, target = tmp_path / "input", tmp_path / "done"
    cut_into_parts([table(range(3))], source, 2)
    for part in list_parts(source):
        write_parquet(pq.read_table(part), target / part.name)
    run_step(load_config(None, []), PartStep("double", unused_worker, (), source, target))  # type: ignore[arg-type]
    assert not ray.is_initialized()
