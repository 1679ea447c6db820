"""Stages as Ray jobs on a cluster that asks for a token: what a user's first `ray job submit` meets."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def head(new_port: Callable[[], int]) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node of our own, on its own ports and folder; yields the jobs address and its environment."""
    folder = tempfile.mkdtemp(prefix="lrem", dir="/tmp")  # short: Ray's sockets must fit 107 characters
    gcs, dashboard, agent, agent_grpc, client = (new_port() for _ in range(5))
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    env.pop("RAY_ADDRESS", None)
    command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=4", f"--port={gcs}", f"--temp-dir={folder}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--dashboard-agent-grpc-port={agent_grpc}", f"--ray-client-server-port={client}"]
    address = f"http://127.0.0.1:{dashboard}"
    with open(f"{folder}.log", "w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(address, env["RAY_AUTH_TOKEN"], Path(f"{folder}.log"))
            yield address, env
        finally:
            process.send_signal(signal.SIGTERM)  # `--block` takes the whole node down with it
            try:
                process.wait(timeout=60)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                shutil.rmtree(folder, ignore_errors=True)


def wait_for(address: str, token: str, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.fail(f"the head's jobs API did not answer within 120 s: {log.read_text()[-2000:]}")


def submit(head: tuple[str, dict[str, str]], *words: str) -> subprocess.CompletedProcess[str]:
    address, env = head
    command = [str(BIN / "ray"), "job", "submit", "--address", address, "--working-dir", ".", "--", "lrem", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_the_jobs_api_wants_the_token(head: tuple[str, dict[str, str]]) -> None:
    address, env = head
    assert httpx.get(f"{address}/api/jobs/").status_code == 401
    without = (
        address,
        {name: value for name, value in env.items() if name != "RAY_AUTH_TOKEN"} | {"HOME": "/nonexistent"},
    )
    refused = submit(without, "world", "--help")
    assert refused.returncode != 0
    assert "token" in (refused.stdout + refused.stderr).lower()


def test_stages_run_as_jobs(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    for stage in ("world", "curate"):
        done = submit(head, stage, "--config", "configs/tiny.yaml", f"run_dir={tmp_path}")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
        assert f"{stage} wrote" in done.stdout
    assert pq.read_metadata(tmp_path / "curated/triplets.parquet").num_rows > 100


def test_a_failing_stage_fails_its_job(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    done = submit(head, "curate", f"run_dir={tmp_path / 'empty'}")
    assert done.returncode != 0
    assert "does not exist: run the stage that writes it" in " ".join(done.stdout.split())
