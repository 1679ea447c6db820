"""Steps over parts: what is missing is processed, the rest is left alone, and an actor waits for resources."""

import gc
from pathlib import Path

import pyarrow as pa
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from lrem.config import Config, load_config
from lrem.errors import DataError
from ray_apps.cluster.placement import wait_for_resources
from ray_apps.curation.resumable import PartStep, cut_into_parts, part_file, read_parts, run_step, total_counters
from tests.ray.curation.doubler import Doubler

pytestmark = pytest.mark.usefixtures("ray_cluster")


def settings(actors: int = 1, start_timeout_s: float = 60.0, *overrides: str) -> Config:
    return load_config(None, [f"curate.actors={actors}", f"ray.start_timeout_s={start_timeout_s}", *overrides])


def doubling(folder: Path, forbidden: int = -1, use_gpu: bool = False) -> PartStep:
    return PartStep("double", Doubler, (forbidden,), folder / "input", folder / "done", use_gpu)


def cut_numbers(folder: Path, count: int, rows: int) -> None:
    cut_into_parts([pa.table({"n": pa.array(range(count), pa.int64())})], folder / "input", rows)


def numbers(folder: Path) -> list[list[int]]:
    return [table["n"].to_pylist() for table in read_parts(folder)]


def file_states(folder: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in folder.iterdir()}


def test_a_step_waits_for_resources_and_refuses_what_can_never_be_placed(tmp_path: Path) -> None:
    cut_numbers(tmp_path, 3, 2)
    with pytest.raises(DataError, match=r"'double': .* 1 CPU, 1 GPU .*: 4 CPU, 0 GPU"):
        run_step(settings(1, 60.0, "ray.gpus=1"), doubling(tmp_path, use_gpu=True))
    with pytest.raises(DataError, match=r"5 CPU, .* 4 CPU \(1 CPU missing\)"):
        wait_for_resources([{"CPU": 1.0}] * 5, "an actor of 'double'", 60.0)
    group = placement_group([{"CPU": 2.0}] * 2)
    assert group.wait(60)
    with pytest.raises(TimeoutError, match=r"'double': 1 CPU .* within 0.5 s"):
        run_step(settings(start_timeout_s=0.5), doubling(tmp_path))
    remove_placement_group(group)
    run_step(settings(), doubling(tmp_path))
    assert numbers(tmp_path / "done") == [[2 * n for n in part] for part in numbers(tmp_path / "input")]


def test_a_step_processes_what_is_missing_and_leaves_the_rest(tmp_path: Path) -> None:
    target = tmp_path / "done"
    cut_numbers(tmp_path, 47, 10)
    with pytest.raises(ray.exceptions.RayTaskError, match="25 is forbidden"):
        run_step(settings(), doubling(tmp_path, forbidden=25))
    gc.collect()  # the error's traceback holds Ray Data's executor, and that its actors, in a cycle
    part = part_file(target, 2)
    assert not part.exists()
    run_step(settings(actors=2), doubling(tmp_path))
    assert numbers(target) == [[2 * n for n in part] for part in numbers(tmp_path / "input")]
    assert total_counters(target) == {"rows": 47, "kinds": [23, 24]}
    before = file_states(target)
    assert set(before) == {f"{i:06d}.{kind}" for i in range(5) for kind in ("parquet", "json")}  # none half written
    part.unlink()  # its counters stay, as after a kill between the two
    run_step(settings(actors=2), doubling(tmp_path))
    assert numbers(target) == [[2 * n for n in part] for part in numbers(tmp_path / "input")]
    assert total_counters(target) == {"rows": 47, "kinds": [23, 24]}
    after = file_states(target)
    assert {name for name in after if after[name] != before[name]} == {part.name, part.with_suffix(".json").name}
