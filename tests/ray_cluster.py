"""A Ray cluster for tests, by `ray start`, with its own ports, folder and token; all its processes end with it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

PROJECT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TOKEN = "a-token-of-this-test-that-is-long-enough"
START_S = 120.0


class RayHead(NamedTuple):
    """A running head: its addresses, its folder, and the environment of its clients."""

    address: str
    dashboard: str
    env: dict[str, str]
    folder: Path

    def run(self, *words: str, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the virtual environment."""
        return subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def submit(self, name: str | None, *words: str, wait: bool = True) -> tuple[int, str]:
        """Submit an `lrem` command as a job, under a name if given; return exit code and output."""
        options = [*(["--submission-id", name] if name else []), *([] if wait else ["--no-wait"])]
        command = ["ray", "job", "submit", *options, "--working-dir", str(PROJECT), "--", "lrem", *words]
        done = self.run(*command, timeout=500)
        return done.returncode, done.stdout + done.stderr

    def require_success(self, name: str, limit: float) -> None:
        """Wait for a job's end; if it fails, or runs on after `limit` seconds, raise AssertionError with its log."""
        deadline = time.monotonic() + limit
        while "succeeded" not in (status := self.run("ray", "job", "status", name).stdout):
            if "failed" in status or "stopped" in status or time.monotonic() > deadline:
                log = self.run("ray", "job", "logs", name).stdout
                raise AssertionError(f"the job {name} did not succeed within {limit:g} s: {status}\n{log[-20_000:]}")
            time.sleep(1)


@contextmanager
def ray_head(
    folder: Path,
    new_port: Callable[[], int],
    options: Sequence[str] = ("--num-cpus=8",),
    port: int | None = None,
    **env: str,
) -> Iterator[RayHead]:
    """Start a head that requires a token, wait for its dashboard, and end all its processes after the block.

    Args:
        folder: with a short path, since Ray creates sockets in it. options: options of `ray start`.
        port: port of the GCS.
        env: variables of the head, not of its clients.
    """
    ports = [port or new_port(), *(new_port() for _ in range(4))]
    token = folder / "token"
    folder.mkdir(parents=True, exist_ok=True)
    token.write_text(TOKEN)
    client_env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    client_env |= {"PATH": f"{BIN}:{client_env['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    address, dashboard = f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    command = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={ports[0]}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={ports[1]}", "--disable-usage-stats"]
    command += [f"--ray-client-server-port={ports[2]}", f"--dashboard-agent-listen-port={ports[3]}"]
    command.append(f"--dashboard-agent-grpc-port={ports[4]}")
    command += [f"--temp-dir={folder / 'ray'}", f"--object-store-memory={200 * 2**20}", *options]
    log = folder / "head.log"
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, env=client_env | env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        ) as head,
    ):
        try:
            _wait_for(dashboard, head, log)
            yield RayHead(address, dashboard, client_env | {"RAY_ADDRESS": dashboard}, folder)
        finally:
            head.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                head.wait(5)  # it takes half a minute to end its processes one by one
            _end_all(str(folder / "ray"))
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def ray_node(head: RayHead, new_port: Callable[[], int], options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Add a node to the head's cluster, on this machine; yield its process."""
    command = [str(BIN / "ray"), "start", "--block", f"--address={head.address}", "--node-ip-address=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={new_port()}", f"--object-store-memory={100 * 2**20}", *options]
    env = {name: value for name, value in head.env.items() if name != "RAY_ADDRESS"}
    log = head.folder / f"node-{new_port()}.log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True) as node,
    ):
        try:
            deadline = time.monotonic() + START_S
            while "Ray runtime started" not in log.read_text():
                if node.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the node did not start within {START_S:g} s: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield node
        finally:
            node.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                node.wait(5)
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)


def _end_all(folder: str) -> None:
    """End the remaining processes of a cluster, whose command lines name its folder."""
    processes = [p for p in psutil.process_iter(["cmdline"]) if any(folder in word for word in p.info["cmdline"] or ())]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, 30)


def _wait_for(dashboard: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if head.poll() is not None:
            raise RuntimeError(f"ray start ended with {head.returncode}: {log.read_text()[-2000:]}")
        try:
            response = httpx.get(f"{dashboard}/api/version", timeout=5, headers={"Authorization": f"Bearer {TOKEN}"})
            if response.is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"no dashboard at {dashboard} within {START_S:g} s: {log.read_text()[-2000:]}")
