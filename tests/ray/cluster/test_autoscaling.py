"""A cluster that scales with queued work and idleness: real raylets, started and ended by Ray's autoscaler."""

import json
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from lrem.world import make_world
from tests.fake_cloud import autoscaling_head
from tests.ray_cluster import RayHead

TINY = ("--config", "configs/tiny.yaml")
DATA, ROLLOUT = "placement.data={lrem_data: 1}", "placement.rollouts={lrem_rollout: 1}"
KINDS: dict[str, dict[str, Any]] = {
    "data": {"resources": {"CPU": 1, "lrem_data": 1}, "max_workers": 2},
    "rollout": {"resources": {"CPU": 1, "lrem_rollout": 1}, "max_workers": 1},
    "serving": {"resources": {"CPU": 2, "lrem_serving": 2}, "max_workers": 3},
}
UP_S, DOWN_S = 180.0, 120.0
pytestmark = pytest.mark.timeout(1500)  # with the fixtures, a cluster and a training; every wait has its own limit


@pytest.fixture(scope="module")
def head(new_port: Callable[[], int]) -> Iterator[RayHead]:
    with autoscaling_head(Path(f"/tmp/lrem-{new_port()}"), new_port, KINDS) as cluster:
        yield cluster


def machines(head: RayHead, alive: bool | None = None) -> Counter[str]:
    """Count machines by kind, without the head: those that are up (True), gone (False), or both (None)."""
    done = head.run("lrem", "status", f"ray.address={head.address}", "--json")
    assert done.returncode == 0, done.stderr
    nodes = json.loads(done.stdout)["machines"]
    return Counter(m["kind"] for m in nodes if not m["head"] and alive in (None, m["alive"]))


def until(happened: Callable[[], bool], limit: float, what: str) -> None:
    deadline = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < deadline, f"{what} not within {limit:g} s"
        time.sleep(1)


def write_world(run: Path) -> None:
    """Write the demo world of configs/tiny.yaml where a run expects it."""
    make_world(0, 600, 300, 50).write(run / "world")


def outputs(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run / "curated").glob("*.parquet")}


@pytest.mark.slow
def test_queued_curation_adds_machines_and_idleness_removes_them(head: RayHead, tmp_path: Path) -> None:
    write_world(tmp_path)
    assert machines(head) == {}
    words = ["curate", *TINY, f"run_dir={tmp_path}", "curate.actors=2", "curate.part_rows=100"]
    code, output = head.submit(None, *words, DATA)
    assert code == 0, output
    assert machines(head)["data"] >= 1  # only such a machine could run it
    until(lambda: not machines(head, alive=True), DOWN_S, "removal of idle machines")
    assert machines(head, alive=False)["data"] >= 1
    assert len(outputs(tmp_path)) == 2


def test_resources_that_no_machine_has_are_refused_at_once(head: RayHead, tmp_path: Path) -> None:
    write_world(tmp_path)
    started = time.monotonic()
    code, output = head.submit(None, "curate", *TINY, f"run_dir={tmp_path}", "placement.data={lrem_gold: 1}")
    assert code == 1
    assert "no machine that this cluster has or may add has 1 CPU, 1 lrem_gold" in " ".join(output.split())
    assert time.monotonic() - started < 100  # ray.start_timeout_s is 180
    assert "data" not in machines(head, alive=True)


@pytest.mark.slow
def test_losing_a_machine_during_curation_loses_nothing(head: RayHead, tmp_path: Path) -> None:
    """kill -9 of the raylet of one of two actors, half-way: the job succeeds, with the same files."""
    lost, calm = tmp_path / "lost", tmp_path / "calm"
    write_world(lost)
    shutil.copytree(lost / "world", calm / "world")
    words = ["curate", *TINY, "curate.actors=2", "curate.part_rows=5"]
    code, output = head.submit("lost", *words, f"run_dir={lost}", DATA, wait=False)
    assert code == 0, output
    until(lambda: any(lost.glob("curated/work/*/found/*.parquet")), UP_S, "the first part")
    victims = raylets(head, "data")
    assert victims
    victims[0].send_signal(signal.SIGKILL)
    assert not (lost / "curated/triplets.parquet").exists(), "the job ended before the kill"
    head.require_success("lost", 300)
    code, output = head.submit(None, *words, f"run_dir={calm}")
    assert code == 0, output
    assert outputs(lost) == outputs(calm)


WAITING = """
import sys, threading, time, ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray_apps.cluster.placement import wait_for_resources

ray.init(sys.argv[1], log_to_driver=False)
one = {"CPU": 1.0, "lrem_data": 1.0}
held = placement_group([one])
assert held.wait(120), "the first machine"
given_back = time.monotonic() + 15
threading.Timer(15, remove_placement_group, [held]).start()
wait_for_resources([one] * 2, "two actors", 120)
print("waited for its end" if time.monotonic() >= given_back else "too early")
try:
    wait_for_resources([one] * 3, "three actors", 120)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_resources_in_use_are_waited_for(head: RayHead) -> None:
    """With at most two machines, one of them busy: a request for two waits, a request for three is refused."""
    done = head.run("python", "-c", WAITING, head.address)
    assert done.returncode == 0, done.stderr
    assert "waited for its end" in done.stdout
    assert "DataError cannot place three actors: 3 CPU, 3 lrem_data in 3 bundles" in done.stdout
    assert "even with every machine it may add" in done.stdout


@pytest.fixture(scope="module")
def trained(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained")
    write_world(run)
    for stage in (["curate"], ["cold-start"], ["reinforce", ROLLOUT], ["embed"], ["index", "build"]):
        code, output = head.submit(None, *stage, *TINY, f"run_dir={run}")
        assert code == 0, output
    return run


@pytest.mark.slow
def test_rollouts_add_their_machine(head: RayHead, trained: Path) -> None:
    assert machines(head)["rollout"] >= 1
    assert [json.loads(line)["step"] for line in (trained / "logs/reinforce.jsonl").open()] == [1, 2, 3]
    until(lambda: not machines(head, alive=True)["rollout"], DOWN_S, "removal of the idle machine")


@pytest.mark.slow
def test_losing_the_machine_of_the_rollouts_loses_no_step(head: RayHead, trained: Path, tmp_path: Path) -> None:
    """kill -9 of the raylet of the only engine, half-way: another machine is added, and every step is done once."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "checkpoints/reinforce", ignore_errors=True)
    (run / "logs/reinforce.jsonl").unlink()
    words = ["reinforce", *TINY, f"run_dir={run}", ROLLOUT, "reinforce.steps=60"]
    code, output = head.submit("rollouts", *words, wait=False)
    assert code == 0, output
    until(lambda: steps(run) >= 5, UP_S, "step 5")
    [victim] = raylets(head, "rollout")
    before = steps(run)
    victim.send_signal(signal.SIGKILL)
    assert before < 60
    head.require_success("rollouts", 300)
    assert [json.loads(line)["step"] for line in (run / "logs/reinforce.jsonl").open()] == list(range(1, 61))


def steps(run: Path) -> int:
    file = run / "logs/reinforce.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.slow
def test_replicas_scale_with_the_load(head: RayHead, trained: Path, new_port: Callable[[], int]) -> None:
    """No request fails while replicas and their machines are added and removed.

    All machines have one address here. If each had a proxy on its port, requests would reach machines that have no
    routes yet or are about to end: so only the head has one.
    """
    port = new_port()
    http = ["--http-host", "127.0.0.1", "--http-port", str(port), "--proxy-location", "HeadOnly"]
    started = head.run("serve", "start", "--address", head.address, *http)
    assert started.returncode == 0, started.stderr
    words = ["serve", *TINY, f"run_dir={trained}", f"serve.port={port}", "placement.reasoner={lrem_serving: 1}"]
    words += ["serve.embedder={max_replicas: 3, target_ongoing: 1, downscale_delay_s: 20}"]
    words += ["serve.cache_size=0", "serve.shards=1"]
    code, output = head.submit("serve", *words, wait=False)
    assert code == 0, output
    url = f"http://127.0.0.1:{port}"
    until(lambda: ready(url), UP_S, "the service")
    until(lambda: replicas(head) == 1, 60, "one embedder")
    failed: list[str] = []
    over = threading.Event()
    clients = [threading.Thread(target=send_queries, args=(url, i, over, failed)) for i in range(12)]
    for client in clients:
        client.start()
    try:
        until(lambda: replicas(head) > 1, UP_S, "a second embedder")
        until(lambda: machines(head, alive=True)["serving"] > 1, UP_S, "a second machine")
    finally:
        over.set()
        for client in clients:
            client.join(60)
    slow_over = threading.Event()
    slow_client = threading.Thread(target=send_queries, args=(url, 99, slow_over, failed, 0.5))
    slow_client.start()
    try:
        until(lambda: replicas(head) == 1, DOWN_S, "one embedder again")
        until(lambda: machines(head, alive=True)["serving"] == 1, DOWN_S, "one machine again")
    finally:
        slow_over.set()
        slow_client.join(60)
    assert failed == []


def ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    except httpx.TransportError:
        return False


def replicas(head: RayHead) -> int:
    done = head.run("lrem", "status", f"ray.address={head.address}", "--json")
    parts = {part["part"]: part["replicas"] for part in json.loads(done.stdout)["service"]}
    return int(re.findall(r"(\d+) RUNNING", parts.get("Embedder", "") or "0 RUNNING")[0])


def send_queries(url: str, number: int, over: threading.Event, failed: list[str], pause_s: float = 0.0) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        sent = 0
        while not over.wait(pause_s):
            sent += 1
            body = {"query": f"warm hat {number} {sent}", "k": 3, "reason": "never"}
            try:
                response = client.post("/v1/search", json=body)
            except httpx.TransportError as error:
                failed.append(repr(error))
                continue
            if response.status_code != 200:
                failed.append(f"{response.status_code} {response.text}")
    if not sent:
        failed.append(f"client {number} sent nothing")


def raylets(head: RayHead, kind: str) -> list[psutil.Process]:
    """Return the raylets of one kind of machine."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].endswith("raylet/raylet") and any(str(head.folder) in word for word in words):
            processes.append(process)
    return [process for process in processes if process.environ().get("RAY_NODE_TYPE_NAME") == kind]
