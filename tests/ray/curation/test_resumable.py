"""Work part by part: parts are cut equally, what is done is not done again, and counters add up."""

import json
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.util.placement_group import placement_group, remove_placement_group

from lrem.config import Config, load_config
from lrem.data.counters import Counters, add_counters
from lrem.data.files import write_parquet
from lrem.errors import DataError
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.cluster.session import cluster
from ray_apps.curation import resumable


def configured(*more: str) -> Config:
    return load_config(None, ["ray.num_cpus=4", *more])


class Doubler:
    """n → 2 n; counts its rows and a histogram of odd and even ones, and refuses what it is told to."""

    def __init__(self, refused: int) -> None:
        self.refused = refused

    def __call__(self, part: pa.Table) -> tuple[pa.Table, Counters]:
        numbers = part["n"].to_pylist()
        if self.refused in numbers:
            raise ValueError(f"{self.refused} is refused")
        odd = sum(n % 2 for n in numbers)
        return pa.table({"n": [2 * n for n in numbers]}), {"rows": len(numbers), "kinds": [odd, len(numbers) - odd]}


def numbers(folder: Path) -> list[list[int]]:
    return [table["n"].to_pylist() for table in resumable.read_parts(folder)]


def table(values: range) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64())})


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(1, 12))
def test_parts_are_cut_equally_whatever_the_blocks(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int
) -> None:
    folder, total = tmp_path_factory.mktemp("cut"), sum(sizes)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    count = resumable.cut((table(range(a, b)) for a, b in pairwise([0, *ends])), folder, rows)
    assert numbers(folder) == [list(range(a, min(a + rows, total))) for a in range(0, total, rows)]
    assert count == len(resumable.parts_of(folder)) == -(-total // rows)
    assert json.loads((folder / "cut.json").read_text()) == {"parts": count}


def test_a_cut_that_broke_off_is_not_one(tmp_path: Path) -> None:
    def breaking() -> object:
        yield table(range(10))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        resumable.cut(breaking(), tmp_path / "input", 3)  # type: ignore[arg-type]
    assert len(resumable.parts_of(tmp_path / "input")) == 3
    assert not resumable.is_cut(tmp_path / "input")
    resumable.cut([table(range(4))], tmp_path / "input", 3)
    assert resumable.is_cut(tmp_path / "input")


COUNTS = st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 9), max_size=2) | st.fixed_dictionaries(
    {"list": st.lists(st.integers(0, 9), min_size=3, max_size=3)}
)


@given(COUNTS, COUNTS, COUNTS)
def test_counters_add_up_in_any_order(one: Counters, two: Counters, three: Counters) -> None:
    assert add_counters(add_counters(one, two), three) == add_counters(three, add_counters(two, one))
    assert add_counters(one, {}) == add_counters({}, one) == one


def test_a_missing_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        add_counters({"list": [1, 2]}, {"list": [1]})


def test_a_run_does_what_is_missing_and_leaves_the_rest(tmp_path: Path) -> None:
    source, target = tmp_path / "input", tmp_path / "done"
    resumable.cut([table(range(47))], source, 10)
    with cluster(configured()):
        with pytest.raises(ray.exceptions.RayTaskError, match="25 is refused"):
            resumable.run_parts(
                configured("curate.actors=1", "ray.start_timeout_s=60.0"), "double", Doubler, (25,), source, target
            )
        part = resumable.part_file(target, 2)
        assert not part.exists()
        resumable.run_parts(
            configured("curate.actors=2", "ray.start_timeout_s=60.0"), "double", Doubler, (-1,), source, target
        )
        assert numbers(target) == [[2 * n for n in found] for found in numbers(source)]
        assert resumable.total(target) == {"rows": 47, "kinds": [23, 24]}
        before = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in target.iterdir()}
        assert set(before) == {f"{i:06d}.{kind}" for i in range(5) for kind in ("parquet", "json")}  # nothing half done
        part.unlink()  # its counters stay, as after a kill between the two
        resumable.run_parts(
            configured("curate.actors=2", "ray.start_timeout_s=60.0"), "double", Doubler, (-1,), source, target
        )
        assert numbers(target) == [[2 * n for n in found] for found in numbers(source)]
        assert resumable.total(target) == {"rows": 47, "kinds": [23, 24]}
    after = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in target.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {part.name, part.with_suffix(".json").name}


def test_room_is_waited_for_and_what_cannot_come_is_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "input", tmp_path / "done"
    resumable.cut([table(range(3))], source, 2)
    with cluster(configured()):
        with pytest.raises(DataError, match=r"'double': .* 1 CPU, 1 GPU .*: 4 CPU, 0 GPU"):
            resumable.run_parts(configured(), "double", Doubler, (-1,), source, target, num_gpus=1)
        with pytest.raises(DataError, match=r"5 CPU, .* 4 CPU \(1 CPU missing\)"):
            wait_for_resources([{"CPU": 1.0}] * 5, "an actor of 'double'", 60.0)
        held = placement_group([{"CPU": 2.0}] * 2)
        assert held.wait(60)
        with pytest.raises(TimeoutError, match=r"'double': 1 CPU .* within 0.5 s"):
            resumable.run_parts(
                configured("curate.actors=1", "ray.start_timeout_s=0.5"), "double", Doubler, (-1,), source, target
            )
        remove_placement_group(held)
        resumable.run_parts(
            configured("curate.actors=1", "ray.start_timeout_s=60.0"), "double", Doubler, (-1,), source, target
        )
        assert numbers(target) == [[2 * n for n in found] for found in numbers(source)]


def test_nothing_to_do_needs_no_ray(tmp_path: Path) -> None:
    resumable.cut([table(range(3))], tmp_path / "input", 2)
    for part in resumable.parts_of(tmp_path / "input"):
        write_parquet(pq.read_table(part), tmp_path / "done" / part.name)
    resumable.run_parts(configured(), "double", Doubler, (0,), tmp_path / "input", tmp_path / "done")
    assert not ray.is_initialized()
