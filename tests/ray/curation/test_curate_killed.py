"""`lrem curate` killed and started again: the outcome of a run that was left alone, and nothing is paid twice."""

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

from lrem.config import Config, load_config
from lrem.data.files import write_parquet
from ray_apps.cluster.session import cluster
from ray_apps.curation import curate, resumable
from tests.chat_server import Chat, serve

LREM = [sys.executable, "-m", "ray_apps.cli.main"]
COUNT, HARD = 32, 24  # queries; of these one in four is easy


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for Ray of its own, with a name that leaves room for those of Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="lrem-k-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def name(number: int) -> str:
    """In letters: a number would be a literal, which no teacher may invent."""
    return f"{'abcd'[number // 8]}{'ijklmnop'[number % 8]}"


def query(number: int) -> str:
    return f"gadget{name(number)}" if number % 4 == 0 else f"what does thing{name(number)} need"


def settings(folder: Path, url: str) -> list[str]:
    """A shop of which each query wants one item; every part is one query."""
    ids = [f"q{i:02d}" for i in range(COUNT)]
    tables = {
        "items": {"item_id": [f"i{i}" for i in range(COUNT)], "title": [f"gadget{name(i)} blue" for i in range(COUNT)]},
        "queries": {"query_id": ids, "query": [query(i) for i in range(COUNT)]},
        "qrels": {"query_id": ids, "item_id": [f"i{i}" for i in range(COUNT)], "grade": [1] * COUNT},
    }
    for file, table in tables.items():
        write_parquet(pa.table(table), folder / f"world/{file}.parquet")
    told = {"engine": "url", "model": "m", "url": url, "concurrency": 2}
    return [
        *(f"run_dir={folder}", "ray.num_cpus=4", "curate.teacher=llm", "curate.part_rows=1", "curate.test_share=0.2"),
        *(f"curate.llm.{key}={value}" for key, value in told.items()),
    ]


class Run:
    """A command in a process group of its own, which ends with the block, and every process that it has started."""

    def __init__(self, words: list[str], ray_folder: Path) -> None:
        self.command, self.environment = [*LREM, "curate", *words], os.environ | {"RAY_TMPDIR": str(ray_folder)}
        self.family: set[psutil.Process] = set()

    def __enter__(self) -> "Run":
        self.process = subprocess.Popen(
            self.command, env=self.environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        return self

    def __exit__(self, *error: object) -> None:
        """SIGKILL to the group; what Ray leaves behind notices by itself, or is ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)
        _, left = psutil.wait_procs(self.family, timeout=5)
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=20)

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for something that the command does; returns within milliseconds."""
        deadline, counted = time.monotonic() + 240, 0.0
        while not reached():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            if time.monotonic() - counted > 0.2:
                self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
                counted = time.monotonic()
            time.sleep(0.002)


def outputs(config: Config) -> dict[str, bytes]:
    folder = config.path("triplets").parent
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def test_a_run_that_is_killed_twice_ends_as_one_that_is_not(tmp_path: Path, short: Path) -> None:
    keywords = {query(i): f"gadget{name(i)}, thing{name(i)}" for i in range(COUNT)}
    troubled, calm = Chat(keywords, {}), Chat(keywords, {})
    troubled.delay_s = 0.05
    with serve(troubled) as url:
        words = settings(tmp_path / "killed", url)
        config = load_config(None, words)
        work = curate.curation_run(config).folder

        with Run(words, short) as run:
            run.until(lambda: troubled.answered.total() >= 12)
        assert len(resumable.parts_of(work / "found")) == COUNT
        assert not (work / "taught").exists()
        time.sleep(0.5)  # what is under way ends at the server
        asked = troubled.calls.total()
        with sqlite3.connect(work.parent / "answers.sqlite") as answers:
            received = answers.execute("SELECT count(*) FROM answers").fetchone()[0]
        assert asked - 2 <= received <= asked < HARD

        with Run(words, short) as run:
            run.until(lambda: len(resumable.parts_of(work / "taught")) >= 3)
        assert 3 <= len(resumable.parts_of(work / "taught")) < COUNT
        done = {part: part.stat().st_mtime_ns for part in resumable.parts_of(work / "taught")}
        assert not config.path("triplets").exists()

        with cluster(config):
            counts = curate.run(config)
            with serve(calm) as another:
                left = load_config(None, settings(tmp_path / "calm", another))
                assert curate.run(left) == counts

    assert {part: part.stat().st_mtime_ns for part in done} == done  # they were not done again
    assert calm.calls == {(kind, query(i), ""): 1 for kind in ("think", "keywords") for i in range(COUNT) if i % 4}
    assert troubled.calls.keys() == calm.calls.keys()
    assert troubled.calls.total() == 2 * HARD + asked - received  # no answer that was received is paid for again
    assert outputs(config) == outputs(left)
    for step in ("found", "taught", "decided"):
        tables = [list(resumable.read_parts(curate.curation_run(one).folder / step)) for one in (config, left)]
        assert tables[0] == tables[1]
        assert [row for table in tables[0] for row in table["query_id"].to_pylist()] == [
            f"q{i:02d}" for i in range(COUNT)
        ]
    assert (counts["kept"], counts["kept without reasoning"], counts["queries"]) == (HARD, COUNT - HARD, COUNT)
    files = [config.path(part) for part in ("triplets", "rl_pairs", "test")]
    written = [row for file in files for row in pq.read_table(file)["query_id"].to_pylist()]
    assert sorted(written) == [f"q{i:02d}" for i in range(COUNT)]  # none lost, none twice
