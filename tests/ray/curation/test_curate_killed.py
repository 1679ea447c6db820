"""`lrem curate` killed twice: the result of an uninterrupted run, and no answer is paid for twice."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.config import load_config
from lrem.data.files import write_parquet
from ray_apps.curation import curate
from ray_apps.curation.resumable import list_parts, read_parts
from ray_apps.curation.run_folder import open_run
from tests.chat_server import Chat, serve
from tests.ray.curation.small_shop import output_files

LREM = [sys.executable, "-m", "ray_apps.cli.main"]
COUNT, HARD = 32, 24  # queries; one in four is easy


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder for Ray's files, with a short name: the paths of sockets are limited."""
    folder = Path(tempfile.mkdtemp(prefix="lrem-k-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def name(number: int) -> str:
    """Return a number in letters: digits would be a literal, which no teacher may add."""
    return f"{'abcd'[number // 8]}{'ijklmnop'[number % 8]}"


def query(number: int) -> str:
    return f"gadget{name(number)}" if number % 4 == 0 else f"what does thing{name(number)} need"


def write_shop(folder: Path, url: str) -> list[str]:
    """Write a shop with one relevant item per query and one query per part; return its settings."""
    ids = [f"q{i:02d}" for i in range(COUNT)]
    tables = {
        "items": {"item_id": [f"i{i}" for i in range(COUNT)], "title": [f"gadget{name(i)} blue" for i in range(COUNT)]},
        "queries": {"query_id": ids, "query": [query(i) for i in range(COUNT)]},
        "qrels": {"query_id": ids, "item_id": [f"i{i}" for i in range(COUNT)], "grade": [1] * COUNT},
    }
    for file, table in tables.items():
        write_parquet(pa.table(table), folder / f"world/{file}.parquet")
    llm = {"engine": "url", "model": "m", "url": url, "concurrency": 2}
    return [
        *(f"run_dir={folder}", "ray.num_cpus=4", "curate.teacher=llm", "curate.part_rows=1", "curate.test_share=0.2"),
        *(f"curate.llm.{key}={value}" for key, value in llm.items()),
    ]


class CurateCommand:
    """`lrem curate` in its own process group, which is killed at the end of the block with all that it started."""

    def __init__(self, overrides: list[str], ray_folder: Path) -> None:
        self.command, self.environment = [*LREM, "curate", *overrides], os.environ | {"RAY_TMPDIR": str(ray_folder)}
        self.descendants: set[psutil.Process] = set()

    def __enter__(self) -> "CurateCommand":
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        """Send SIGKILL to the group; Ray's other processes end when they notice, or are killed too."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)
        _, remaining = psutil.wait_procs(self.descendants, timeout=5)
        for process in remaining:
            process.kill()
        psutil.wait_procs(remaining, timeout=20)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the command does; return within milliseconds of it."""
        deadline, listed = time.monotonic() + 240, 0.0
        while not condition():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            if time.monotonic() - listed > 0.2:
                self.descendants |= set(psutil.Process(self.process.pid).children(recursive=True))
                listed = time.monotonic()
            time.sleep(0.002)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_is_killed_twice_ends_like_one_that_is_not(tmp_path: Path, ray_folder: Path) -> None:
    keywords = {query(i): f"gadget{name(i)}, thing{name(i)}" for i in range(COUNT)}
    slow, fast = Chat(keywords, {}), Chat(keywords, {})
    slow.delay_s = 0.05
    with serve(slow) as url:
        overrides = write_shop(tmp_path / "killed", url)
        config = load_config(None, overrides)
        work = open_run(config).folder

        with CurateCommand(overrides, ray_folder) as command:
            command.wait_until(lambda: slow.answered.total() >= 12)
        assert len(list_parts(work / "found")) == COUNT
        assert not (work / "taught").exists()
        time.sleep(0.5)  # the server finishes the requests in flight
        sent = slow.calls.total()
        with sqlite3.connect(work.parent / "answers.sqlite") as answers:
            saved = answers.execute("SELECT count(*) FROM answers").fetchone()[0]
        assert sent - 2 <= saved <= sent < HARD

        with CurateCommand(overrides, ray_folder) as command:
            command.wait_until(lambda: len(list_parts(work / "taught")) >= 3)
        assert 3 <= len(list_parts(work / "taught")) < COUNT
        finished = {part: part.stat().st_mtime_ns for part in list_parts(work / "taught")}
        assert not config.path("triplets").exists()

        counters = curate.run(config)
        with serve(fast) as fast_url:
            uninterrupted = load_config(None, write_shop(tmp_path / "uninterrupted", fast_url))
            assert curate.run(uninterrupted) == counters

    assert {part: part.stat().st_mtime_ns for part in finished} == finished  # they were not computed again
    assert fast.calls == {(kind, query(i), ""): 1 for kind in ("think", "keywords") for i in range(COUNT) if i % 4}
    assert slow.calls.keys() == fast.calls.keys()
    assert slow.calls.total() == 2 * HARD + sent - saved  # no saved answer is paid for again
    assert output_files(config) == output_files(uninterrupted)
    ids = [f"q{i:02d}" for i in range(COUNT)]
    for step in ("found", "taught", "decided"):
        parts, expected = (list(read_parts(open_run(one).folder / step)) for one in (config, uninterrupted))
        assert parts == expected
        assert [row for part in parts for row in part["query_id"].to_pylist()] == ids
    assert (counters["kept"], counters["kept without reasoning"], counters["queries"]) == (HARD, COUNT - HARD, COUNT)
    files = [config.path(name) for name in ("triplets", "rl_pairs", "test")]
    written = [row for file in files for row in pq.read_table(file)["query_id"].to_pylist()]
    assert sorted(written) == ids  # none lost, none twice
