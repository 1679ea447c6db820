"""A cluster that grows with queued work and shrinks when idle: real raylets, started and ended by Ray's autoscaler."""

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


@pytest.fixture(scope="module")
def head(new_port: Callable[[], int]) -> Iterator[RayHead]:
    with autoscaling_head(Path(f"/tmp/lrem-{new_port()}"), new_port, KINDS) as made:
        yield made


def machines(head: RayHead, alive: bool | None = None) -> Counter[str]:
    """Machines by kind, the head left out: those that are up (True), gone (False), or that ever were."""
    done = head.run("lrem", "status", f"ray.address={head.address}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["machines"]
    return Counter(m["kind"] for m in found if not m["head"] and alive in (None, m["alive"]))


def until(happened: Callable[[], bool], limit: float, what: str) -> None:
    deadline = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < deadline, f"{what} not within {limit:g} s"
        time.sleep(1)


def world(head: RayHead, run: Path) -> None:
    """Made on this machine: it needs no cluster."""
    done = head.run("lrem", "world", *TINY, f"run_dir={run}")
    assert done.returncode == 0, done.stderr


def outputs(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run / "curated").glob("*.parquet")}


def test_queued_curation_brings_machines_up_and_idleness_takes_them_down(head: RayHead, tmp_path: Path) -> None:
    world(head, tmp_path)
    assert machines(head) == {}
    words = ["curate", *TINY, f"run_dir={tmp_path}", "curate.actors=2", "curate.part_rows=100"]
    code, said = head.submit(None, *words, DATA)
    assert code == 0, said
    assert machines(head)["data"] >= 1  # that were up; nothing else could have done it
    until(lambda: not machines(head, alive=True), DOWN_S, "idle machines taken down")
    assert machines(head, alive=False)["data"] >= 1
    assert len(outputs(tmp_path)) == 2


def test_what_no_machine_can_give_is_refused_at_once(head: RayHead, tmp_path: Path) -> None:
    world(head, tmp_path)
    started = time.monotonic()
    code, said = head.submit(None, "curate", *TINY, f"run_dir={tmp_path}", "placement.data={lrem_gold: 1}")
    assert code == 1
    assert "no machine that this cluster has or may add has 1 CPU, 1 lrem_gold" in " ".join(said.split())
    assert time.monotonic() - started < 100  # ray.start_timeout_s is 180
    assert "data" not in machines(head, alive=True)


@pytest.mark.slow
def test_a_machine_that_is_lost_with_work_on_it_loses_nothing(head: RayHead, tmp_path: Path) -> None:
    """kill -9 of the raylet under one of two actors, in the midst: the job ends well, with the same files."""
    lost, calm = tmp_path / "lost", tmp_path / "calm"
    world(head, lost)
    shutil.copytree(lost / "world", calm / "world")
    words = ["curate", *TINY, "curate.actors=2", "curate.part_rows=5"]
    code, said = head.submit("lost", *words, f"run_dir={lost}", DATA, wait=False)
    assert code == 0, said
    until(lambda: any(lost.glob("curated/work/*/found/*.parquet")), UP_S, "the first part")
    victims = raylets(head, "data")
    assert victims
    victims[0].send_signal(signal.SIGKILL)
    assert not (lost / "curated/triplets.parquet").exists(), "it was over before"
    until(lambda: "succeeded" in head.run("ray", "job", "status", "lost").stdout, 300, "the job's end")
    code, said = head.submit(None, *words, f"run_dir={calm}")
    assert code == 0, said
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
def test_room_that_another_holds_is_waited_for(head: RayHead) -> None:
    """Two machines of a kind at most, and one has work: who wants two waits, who wants three is refused."""
    done = head.run("python", "-c", WAITING, head.address)
    assert done.returncode == 0, done.stderr
    assert "waited for its end" in done.stdout
    assert "DataError cannot place three actors: 3 CPU, 3 lrem_data in 3 bundles" in done.stdout
    assert "even with every machine it may add" in done.stdout


@pytest.fixture(scope="module")
def trained(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained")
    world(head, run)
    for stage in (["curate"], ["cold-start"], ["reinforce", ROLLOUT], ["embed"], ["index", "build"]):
        code, said = head.submit(None, *stage, *TINY, f"run_dir={run}")
        assert code == 0, said
    return run


@pytest.mark.slow
def test_rollouts_bring_their_machine_up(head: RayHead, trained: Path) -> None:
    assert machines(head)["rollout"] >= 1
    assert [json.loads(line)["step"] for line in (trained / "logs/reinforce.jsonl").open()] == [1, 2, 3]
    until(lambda: not machines(head, alive=True)["rollout"], DOWN_S, "the idle machine taken down")


@pytest.mark.slow
def test_the_machine_of_the_rollouts_is_lost(head: RayHead, trained: Path, tmp_path: Path) -> None:
    """kill -9 of the raylet under the only engine, in the midst: another machine comes, and no step is left out."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "checkpoints/reinforce", ignore_errors=True)
    (run / "logs/reinforce.jsonl").unlink()
    words = ["reinforce", *TINY, f"run_dir={run}", ROLLOUT, "reinforce.steps=60"]
    code, said = head.submit("rollouts", *words, wait=False)
    assert code == 0, said
    until(lambda: steps(run) >= 5, UP_S, "step 5")
    [victim] = raylets(head, "rollout")
    before = steps(run)
    victim.send_signal(signal.SIGKILL)
    assert before < 60
    until(lambda: "succeeded" in head.run("ray", "job", "status", "rollouts").stdout, 300, "the job's end")
    assert [json.loads(line)["step"] for line in (run / "logs/reinforce.jsonl").open()] == list(range(1, 61))


def steps(run: Path) -> int:
    file = run / "logs/reinforce.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.slow
def test_replicas_come_with_load_and_go_without(head: RayHead, trained: Path, new_port: Callable[[], int]) -> None:
    """Not a request fails while replicas and their machines come, and while they go."""
    port = new_port()
    words = ["serve", *TINY, f"run_dir={trained}", f"serve.port={port}", "placement.reasoner={lrem_serving: 1}"]
    words += ["serve.embedder={max_replicas: 3, target_ongoing: 1}", "serve.cache_size=0", "serve.shards=1"]
    code, said = head.submit("serve", *words, wait=False)
    assert code == 0, said
    url = f"http://127.0.0.1:{port}"
    until(lambda: ready(url), UP_S, "the service")
    until(lambda: replicas(head) == 1, 60, "one embedder")
    failed: list[str] = []
    over = threading.Event()
    askers = [threading.Thread(target=keep_asking, args=(url, i, over, failed)) for i in range(12)]
    for asker in askers:
        asker.start()
    try:
        until(lambda: replicas(head) > 1, UP_S, "another embedder")
        until(lambda: machines(head, alive=True)["serving"] > 1, UP_S, "another machine")
    finally:
        over.set()
        for asker in askers:
            asker.join(60)
    calm = threading.Event()
    one = threading.Thread(target=keep_asking, args=(url, 99, calm, failed, 0.5))
    one.start()
    try:
        until(lambda: replicas(head) == 1, 300, "one embedder again")
        until(lambda: machines(head, alive=True)["serving"] == 1, DOWN_S, "one machine again")
    finally:
        calm.set()
        one.join(60)
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


def keep_asking(url: str, number: int, over: threading.Event, failed: list[str], pause_s: float = 0.0) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        asked = 0
        while not over.wait(pause_s):
            asked += 1
            body = {"query": f"warm hat {number} {asked}", "k": 3, "reason": "never"}
            try:
                answer = client.post("/v1/search", json=body)
            except httpx.TransportError as error:
                failed.append(repr(error))
                continue
            if answer.status_code != 200:
                failed.append(f"{answer.status_code} {answer.text}")
    if not asked:
        failed.append(f"asker {number} asked nothing")


def raylets(head: RayHead, kind: str) -> list[psutil.Process]:
    """Machines of one kind, as processes."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or [""]
        if words[0].endswith("raylet/raylet") and any(str(head.folder) in word for word in words):
            found.append(process)
    return [process for process in found if process.environ().get("RAY_NODE_TYPE_NAME") == kind]
