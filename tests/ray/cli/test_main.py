"""The command line as a user sees it: help, dry run, mistakes, Ctrl-C."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from lrem.data.files import write_parquet
from lrem.world import make_world
from tests.conftest import CommandResult
from tests.ray.triplets import write_triplets

Lrem = Callable[..., CommandResult]
LREM = [sys.executable, "-m", "ray_apps.cli.main"]
COMMANDS = (
    "world",
    "curate",
    "backbone",
    "cold-start",
    "mine-negatives",
    "reinforce",
    "embed",
    "index",
    "search",
    "evaluate",
    "serve",
    "demo",
    "status",
    "plan",
)


def test_help_lists_every_command() -> None:
    done = subprocess.run([*LREM, "--help"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)


def test_dry_run_prints_the_resolved_tree(lrem: Lrem, tmp_path: Path) -> None:
    done = lrem("cold-start", "--config", "configs/tiny.yaml", f"run_dir={tmp_path}", "seed=7", "--dry-run")
    assert done.returncode == 0
    tree = yaml.safe_load(done.stdout)
    assert (tree["seed"], tree["world"]["products"]) == (7, 600)
    assert tree["paths"]["triplets"] == str(tmp_path / "curated/triplets.parquet")
    assert "does not exist yet" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_rows_steps_and_memory(lrem: Lrem, tmp_path: Path) -> None:
    """256 rows on two workers with 32 rows each: four steps per epoch."""
    write_triplets(tmp_path)
    epochs = "cold_start.epochs=18"
    done = lrem("cold-start", "--config", "configs/tiny.yaml", f"run_dir={tmp_path}", epochs, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "# rows 256, epochs 18, steps 72 (2 workers x 32 rows)" in done.stdout
    assert "# parameters 0.1 M" in done.stdout
    assert "# memory of a worker, GiB, estimated: " in done.stdout
    lists = {"query": ["a"], "item_id": ["b"]}
    write_parquet(pa.table(lists), tmp_path / "curated/triplets.parquet")
    wrong = lrem("cold-start", f"run_dir={tmp_path}", "--dry-run")
    assert wrong.returncode == 1
    assert "has no column 'query_id'" in " ".join(wrong.stderr.split())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["world", "seeed=7"], 2, "did you mean 'seed'"),
        (["world", "--config", "none.yaml"], 2, "configs/"),
        (["world", "--sed"], 2, "--sed"),
        (["curate", "run_dir=/nonexistent/run"], 1, "queries.parquet does not exist"),
        (["index", "build", "run_dir=/nonexistent/run"], 1, "items.parquet does not exist"),
        (["serve", "run_dir=/nonexistent/run"], 1, "train a model"),
        (["world", "seed=-1"], 2, "seed"),
        (
            ["cold-start", "model.source=/nonexistent/model", "--dry-run"],
            1,
            "model.source=/nonexistent/model cannot be",
        ),
        (["cold-start", "cold_start.trackers=[wandb]"], 1, "pip install wandb"),
    ],
)
def test_mistakes_end_in_one_line(lrem: Lrem, words: list[str], code: int, message: str) -> None:
    done = lrem(*words)
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert message in " ".join(output.split())
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_half_written(tmp_path: Path, number: signal.Signals) -> None:
    """Stopped half-way through training: exit code 130, no model folder, no temporary folder."""
    make_world(0, 600, 300, 50).write(tmp_path / "world")
    write_triplets(tmp_path)
    words = ["cold-start", "--config", "configs/tiny.yaml", f"run_dir={tmp_path}", "cold_start.epochs=400"]
    with subprocess.Popen(
        [*LREM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        log = tmp_path / "logs/cold_start.jsonl"
        deadline = time.monotonic() + 400
        while process.poll() is None and time.monotonic() < deadline and not (log.exists() and log.stat().st_size):
            time.sleep(0.5)
        started = log.exists()
        process.send_signal(number)
        output, _ = process.communicate(timeout=90)
    assert started, f"training did not start within 400 s: {output[-3000:]}"
    assert process.returncode == 130, output[-3000:]
    assert "stopped; nothing is left half written" in output
    assert not (tmp_path / "cold_start").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".tmp", ".start"))]


def test_a_filter_that_is_not_json(lrem: Lrem) -> None:
    done = lrem("search", "tea", "--filter", "price < 20")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the filter is not JSON")
    assert done.stderr.count("\n") == 1
