"""Stages as jobs of a cluster that requires a token: exit codes, logs, outputs, stopping, two at once, status."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from lrem.world import make_world
from tests.ray.triplets import write_triplets
from tests.ray_cluster import RayHead

TINY = ("--config", "configs/tiny.yaml")


def state(head: RayHead, name: str) -> str:
    return head.run("ray", "job", "status", name).stdout


def until(happened: Callable[[], bool], limit: float, what: str, head: RayHead, name: str) -> None:
    deadline = time.monotonic() + limit
    while not happened():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} not within {limit} s: {head.run('ray', 'job', 'logs', name).stdout}")
        time.sleep(0.5)


def test_a_job_writes_and_prints_what_the_command_does(head: RayHead, tmp_path: Path) -> None:
    """A stage that needs no cluster; tests/deploy/test_prometheus.py runs those that do."""
    code, output = head.submit("world", "world", *TINY, f"run_dir={tmp_path}")
    assert code == 0, output
    assert f"world wrote {tmp_path}/world/items.parquet" in output
    assert pq.read_table(tmp_path / "world/items.parquet").num_rows == 600


def test_a_failing_job_says_why(head: RayHead, tmp_path: Path) -> None:
    code, output = head.submit("nothing", "curate", f"run_dir={tmp_path}")
    assert code == 1
    assert "queries.parquet does not exist" in " ".join(output.split())
    assert "Traceback" not in output.split("Running entrypoint")[1].split("Job 'nothing' failed")[0]
    assert "Job 'nothing' failed" in state(head, "nothing")


def test_without_the_token_nothing_runs_and_nothing_is_shown(head: RayHead, tmp_path: Path) -> None:
    assert httpx.get(f"{head.dashboard}/api/jobs/").status_code == 401
    for env in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}):
        done = head.run("ray", "job", "submit", "--", "lrem", "world", f"run_dir={tmp_path}", **env)
        assert done.returncode != 0
        assert "RAY_AUTH_TOKEN_PATH" in done.stdout + done.stderr
    wrong = tmp_path / "wrong"
    wrong.write_text("another token that is not the cluster's")
    done = head.run("ray", "job", "list", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert done.returncode != 0
    assert "Invalid authentication token" in done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [wrong]


def test_a_command_outside_the_cluster_says_how_to_submit_it(head: RayHead, tmp_path: Path) -> None:
    done = head.run("lrem", "status")  # RAY_ADDRESS is the jobs API
    assert done.returncode == 2
    assert "run `ray job submit --working-dir . -- lrem" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_stopped_job_resumes_beside_another(head: RayHead, tmp_path: Path) -> None:
    """Training is stopped half-way while another job runs; `--resume` finishes it with every step done once."""
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run, other):
        make_world(0, 600, 300, 50).write(folder / "world")
    write_triplets(run)
    words = ["cold-start", *TINY, f"run_dir={run}", "cold_start.epochs=60", "cold_start.checkpoint.every=10"]
    code, output = head.submit("training", *words, wait=False)
    assert code == 0, output
    checkpoints = run / "checkpoints/cold_start"
    until(lambda: any(checkpoints.glob("step-*/state/cursor.json")), 200, "a checkpoint", head, "training")
    status = head.run("lrem", "status", f"ray.address={head.address}")
    assert status.returncode == 0, status.stderr
    assert "cold_start" in status.stdout
    assert "/240 " in status.stdout  # steps
    assert "lrem cold-start" in status.stdout
    code, output = head.submit("beside", "curate", *TINY, f"run_dir={other}")
    assert code == 0, output
    stopped = head.run("ray", "job", "stop", "training")
    assert stopped.returncode == 0, stopped.stderr
    assert "Job 'training' was stopped" in state(head, "training")
    newest = max(int(path.parent.parent.name[5:]) for path in checkpoints.glob("step-*/state/cursor.json"))
    assert 0 < newest < 240, "the job was stopped too late"
    assert not (run / "cold_start").exists()
    assert pq.read_metadata(other / "curated/triplets.parquet").num_rows > 0
    code, output = head.submit("again", *words)
    assert code == 1
    assert "--resume" in " ".join(output.split())
    code, output = head.submit("resumed", *words, "--resume")
    assert code == 0, output
    steps = [json.loads(line)["step"] for line in (run / "logs/cold_start.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 241))
    assert (run / "cold_start/model.safetensors").exists()
