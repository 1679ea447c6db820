"""Each fault that an operator will meet, once, on the real thing: what happens, and what is lost. `make chaos`.

A test is a fault. Each ends in recovery, with every row trained exactly once or every acknowledged write there, or in a
clear error after which the work goes on. Prints a table fault → what happened → lost.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.chaos_reinforce import counts
from benchmarks.chaos_reinforce import steps_done as rl_steps_done
from lrem.data.files import write_json
from ray_apps.cluster.session import cluster
from ray_apps.training.checkpoints import STATE
from tests.ray.training.cold_start_runs import (
    EPOCHS,
    SETTINGS,
    STEPS,
    consumed_rows,
    corpus_ids,
    start_run,
    steps_done,
    stop_at_step_5,
    write_data,
)
from tests.ray.training.helpers import LREM, wait_for_workers, wait_until
from tests.ray_cluster import RayHead, ray_node
from tests.serving import build_world, replica_processes, running_service

pytestmark = pytest.mark.slow
TINY = ("--config", "configs/tiny.yaml")


class Fault(NamedTuple):
    """One line of the table."""

    fault: str
    happened: str
    lost: str


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest) -> Iterator[list[Fault]]:
    """The table; where CHAOS_OUT names a file, it is written there as JSON too."""
    faults: list[Fault] = []
    yield faults
    table = Table(title="Faults", title_justify="left", show_lines=True)
    for column in ("fault", "what happened", "lost"):
        table.add_column(column)
    for fault in faults:
        table.add_row(*fault)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        Console(width=120).print("", table)
    if out := os.environ.get("CHAOS_OUT"):
        write_json({"faults": [fault._asdict() for fault in faults]}, Path(out))


def rows_lost(run: Path, epochs: int = EPOCHS) -> int:
    """Rows that an epoch did not train exactly once."""
    wanted = corpus_ids(run)
    return sum(
        ((consumed_rows(run, epoch) - wanted) + (wanted - consumed_rows(run, epoch))).total() for epoch in range(epochs)
    )


def ended(process: subprocess.Popen[str], code: int, limit: float = 400) -> str:
    said, _ = process.communicate(timeout=limit)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return " ".join(said.split())


def test_a_training_worker_is_killed(told: list[Fault], tmp_path: Path) -> None:
    write_data(tmp_path)
    with start_run(tmp_path) as process:
        workers = wait_for_workers(process)
        wait_until(lambda: steps_done(tmp_path) >= 5, process, "step 5")
        workers[-1].send_signal(signal.SIGKILL)
        assert steps_done(tmp_path) < STEPS
        began = time.monotonic()
        wait_for_workers(process, workers)
        seconds = time.monotonic() - began
        ended(process, 0)
    lost = rows_lost(tmp_path)
    told.append(
        Fault(
            "a training worker is killed",
            f"both ranks started again within {seconds:.0f} s, from the newest checkpoint; the run ended well",
            f"{lost} rows of {2 * 101}",
        )
    )
    assert lost == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cold start on the tiny world."""
    run = tmp_path_factory.mktemp("trained")
    for stage in ("world", "curate", "cold-start"):
        words = [*LREM, stage, *TINY, f"run_dir={run}", "seed=3", "curate.rl_share=0.5"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return run


def test_a_rollout_engine_is_killed(told: list[Fault], trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    steps = 40
    words = ["reinforce", *TINY, f"run_dir={run}", "seed=3", f"reinforce.steps={steps}", "reinforce.log_rows=true"]
    words += ["rollout.actors=2", "rollout.batch_size=4", "reinforce.checkpoint.every=10"]
    with subprocess.Popen([*LREM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_until(lambda: rl_steps_done(run) >= 12, process, "step 12")
        named("ray::EngineActor", process)[0].send_signal(signal.SIGKILL)
        assert rl_steps_done(run) < steps
        ended(process, 0)
    found = counts(run)
    replaced = max(json.loads(line).get("actor_restarts", 0) for line in (run / "logs/reinforce.jsonl").open())
    told.append(
        Fault(
            "a rollout engine is killed",
            f"{replaced:g} engine replaced, given the present weights; all {steps} steps taken",
            f"{found['lost']} queries of {found['queries']}, {found['twice']} twice",
        )
    )
    assert (found["lost"], found["twice"], replaced, rl_steps_done(run)) == (0, 0, 1, steps)


def named(words: str, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes under another whose command line begins so."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if (child.cmdline() or [""])[0].startswith(words):
                found.append(child)
    return found


def test_a_curation_worker_is_killed(told: list[Fault], trained: Path, tmp_path: Path) -> None:
    hit, calm = tmp_path / "hit", tmp_path / "calm"
    for run in (hit, calm):
        shutil.copytree(trained / "world", run / "world")
    words = ["curate", *TINY, "seed=3", "curate.part_rows=2", "curate.actors=2"]
    with subprocess.Popen(
        [*LREM, *words, f"run_dir={hit}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_until(lambda: len(list(hit.glob("curated/work/*/found/*.parquet"))) >= 3, process, "three parts")
        named("ray::MapWorker", process)[0].send_signal(signal.SIGKILL)
        assert not (hit / "curated/triplets.parquet").exists()
        ended(process, 0)
    subprocess.run([*LREM, *words, f"run_dir={calm}"], check=True, stdout=subprocess.DEVNULL, timeout=300)
    same = all((calm / f"curated/{name}").read_bytes() == (hit / f"curated/{name}").read_bytes() for name in FILES)
    told.append(
        Fault(
            "a curation worker is killed",
            "its part was done again by another; the files are those of a run without the fault",
            "nothing" if same else "the files differ",
        )
    )
    assert same


FILES = ("triplets.parquet", "rl_pairs.parquet")


def test_a_machine_dies_while_it_trains(
    told: list[Fault], head: RayHead, new_port: Callable[[], int], tmp_path: Path
) -> None:
    """Three machines for two ranks: the raylet under one is killed, the third takes its place."""
    write_data(tmp_path)
    offers = ["--num-cpus=1", '--resources={"lrem_training": 1}']
    words = ["cold-start", *SETTINGS, f"run_dir={tmp_path}", "placement.training={lrem_training: 1}"]
    words += ["cold_start.epochs=60", "placement.workers=STRICT_SPREAD"]
    with ray_node(head, new_port, offers), ray_node(head, new_port, offers), ray_node(head, new_port, offers):
        code, said = head.submit("machine", *words, wait=False)
        assert code == 0, said
        checkpoints = tmp_path / "checkpoints/cold_start"
        wait_for(lambda: any(checkpoints.glob(f"step-*/{STATE}/cursor.json")), 240, "a checkpoint")
        ranks = [one for one in psutil.process_iter(["cmdline"]) if is_rank(one, head)]
        machine = ranks[-1].parent()
        assert machine is not None
        assert "raylet" in machine.name()
        before = steps_done(tmp_path)
        machine.send_signal(signal.SIGKILL)
        began = time.monotonic()
        wait_for(lambda: steps_done(tmp_path) > before + 3, 300, "the next steps")
        seconds = time.monotonic() - began
        wait_for(lambda: "succeeded" in head.run("ray", "job", "status", "machine").stdout, 300, "the job's end")
    lost = rows_lost(tmp_path, 60)
    told.append(
        Fault(
            "a machine dies while it trains",
            f"its rank was started on another machine; next steps after {seconds:.0f} s, the job succeeded",
            f"{lost} rows of {60 * 101}",
        )
    )
    assert lost == 0


def is_rank(process: psutil.Process, head: RayHead) -> bool:
    with contextlib.suppress(psutil.Error):
        above = [word for parent in process.parents() for word in parent.cmdline()]
        mine = any(str(head.folder) in word for word in above)
        return mine and (process.cmdline() or [""])[0].startswith("ray::RayTrainWorker")
    return False


def wait_for(happened: Callable[[], bool], limit: float, what: str) -> None:
    deadline = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < deadline, f"{what} not within {limit:g} s"
        time.sleep(0.1)


def test_the_driver_of_a_job_is_killed(told: list[Fault], head: RayHead, tmp_path: Path) -> None:
    write_data(tmp_path)
    words = ["cold-start", *SETTINGS, f"run_dir={tmp_path}", "cold_start.epochs=60"]
    code, said = head.submit("driver", *words, wait=False)
    assert code == 0, said
    checkpoints = tmp_path / "checkpoints/cold_start"
    wait_for(lambda: any(checkpoints.glob(f"step-*/{STATE}/cursor.json")), 240, "a checkpoint")
    [driver] = [one for one in psutil.process_iter(["cmdline"]) if is_driver(one, tmp_path)]
    driver.send_signal(signal.SIGKILL)
    assert not (tmp_path / "cold_start").exists(), "it was over before"
    wait_for(lambda: "failed" in head.run("ray", "job", "status", "driver").stdout, 60, "the job's failure")
    wait_for(lambda: not any(is_rank(one, head) for one in psutil.process_iter()), 90, "the end of its workers")
    code, said = head.submit("driver-again", *words, "--resume")
    assert code == 0, said
    lost = rows_lost(tmp_path, 60)
    told.append(
        Fault(
            "the driver of a job is killed",
            "the job is FAILED and its workers end; the same job with --resume goes on and succeeds",
            f"{lost} rows of {60 * 101}",
        )
    )
    assert lost == 0


def is_driver(process: psutil.Process, run: Path) -> bool:
    words = process.info["cmdline"] or [""]
    return f"run_dir={run}" in words and "python" in words[0]


def test_an_index_shard_is_killed(told: list[Fault], new_port: Callable[[], int], tmp_path: Path) -> None:
    """While one caller writes and another searches; after it every acknowledged item is read back."""
    config = build_world(tmp_path, new_port())
    written: list[str] = []
    statuses: list[int] = []
    with cluster(config), running_service(config) as served:
        over = threading.Event()

        def write() -> None:
            number = 0
            with httpx.Client(base_url=served.url, timeout=90) as http:
                while not over.wait(0.02):
                    number += 1
                    item = {"item_id": f"n{number}", "title": f"new thing {number}"}
                    with contextlib.suppress(httpx.TransportError):  # not acknowledged
                        if http.put("/v1/items", json={"items": [item]}).status_code == 200:
                            written.append(item["item_id"])

        def search() -> None:
            with httpx.Client(base_url=served.url, timeout=90) as http:
                while not over.wait(0.02):
                    body = {"query": f"tea pot {len(statuses)}", "reason": "never"}
                    try:
                        statuses.append(http.post("/v1/search", json=body).status_code)
                    except httpx.TransportError:
                        statuses.append(0)

        threads = [threading.Thread(target=write), threading.Thread(target=search)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(written) > 20, 60, "20 writes")
        replica_processes("IndexShard0")[0].send_signal(signal.SIGKILL)
        before, began = len(written), time.monotonic()
        wait_for(lambda: len(written) > before + 20, 120, "20 writes more")
        seconds = time.monotonic() - began
        over.set()
        for thread in threads:
            thread.join(100)
        lost = [item for item in written if served.http.get(f"/v1/items/{item}").status_code != 200]
    failed = sum(status != 200 for status in statuses)
    told.append(
        Fault(
            "an index shard is killed",
            f"writes went on after {seconds:.0f} s; {failed} of {len(statuses)} searches failed",
            f"{len(lost)} of {len(written)} acknowledged writes",
        )
    )
    assert statuses
    assert not lost


def test_the_disk_is_full_during_a_checkpoint(told: list[Fault], tmp_path: Path) -> None:
    run = tmp_path / "disk"
    run.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(run)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        told.append(Fault("the disk is full during a checkpoint", "not run: a small disk needs root", "unknown"))
        pytest.skip(f"a small disk cannot be mounted here ({mounted.stderr.strip()}): run this as root")
    try:
        write_data(run)
        with start_run(run) as process:
            workers = wait_for_workers(process)
            wait_until(lambda: steps_done(run) >= 4, process, "step 4")
            for worker in workers:
                worker.suspend()
            ballast = run / "ballast"
            with ballast.open("wb") as out, contextlib.suppress(OSError):
                while True:
                    out.write(bytes(2**16))
                    out.flush()
            for worker in workers:
                worker.resume()
            said = ended(process, 1)
        assert "no space left in" in said
        assert "--resume" in said
        assert not list((run / "checkpoints/cold_start").glob(".step-*"))
        ballast.unlink()
        with start_run(run, resume=True) as process:
            ended(process, 0)
        lost = rows_lost(run)
    finally:
        subprocess.run(["umount", "--lazy", str(run)], check=True)
    told.append(
        Fault(
            "the disk is full during a checkpoint",
            "the run ends with what to do; with room again --resume goes on from the checkpoint before",
            f"{lost} rows of {2 * 101}",
        )
    )
    assert lost == 0


def test_a_checkpoint_is_cut_short(told: list[Fault], tmp_path: Path) -> None:
    state = stopped_run(tmp_path)
    for file in state.rglob("*.pt"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(state)
    shutil.rmtree(tmp_path / "checkpoints/cold_start")
    for log in (tmp_path / "logs").iterdir():
        log.unlink() if log.is_file() else shutil.rmtree(log)
    with start_run(tmp_path) as process:
        ended(process, 0)
    lost = rows_lost(tmp_path)
    told.append(
        Fault(
            "a checkpoint is cut short",
            "--resume refuses it, names the file and what may still be whole; a new run ends well",
            f"{lost} rows of {2 * 101}; the steps before the damage",
        )
    )
    assert lost == 0


def test_one_bit_of_a_checkpoint_turns(told: list[Fault], tmp_path: Path) -> None:
    state = stopped_run(tmp_path)
    file = max(state.rglob("*.pt"), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    assert f"{file.name} was altered" in refused(state)
    file.write_bytes(whole)
    with start_run(tmp_path, resume=True) as process:
        ended(process, 0)
    lost = rows_lost(tmp_path)
    told.append(
        Fault(
            "one bit of a checkpoint turns",
            "--resume refuses it and names the file; with the file as it was, --resume goes on",
            f"{lost} rows of {2 * 101}",
        )
    )
    assert lost == 0


def stopped_run(run: Path) -> Path:
    """The state of the checkpoint of a run that was stopped half-way."""
    write_data(run)
    with start_run(run) as process:
        stop_at_step_5(run, process)
        ended(process, 130)
    [state] = (run / "checkpoints/cold_start").glob(f"step-*/{STATE}")
    assert list(state.rglob("*.pt"))
    return state


def refused(state: Path) -> str:
    """What --resume says of a damaged checkpoint."""
    with start_run(state.parents[3], resume=True) as process:
        said = ended(process, 1)
    assert f"{state} cannot be read" in said
    assert "to start over" in said
    return said


def test_an_object_store_does_not_answer(told: list[Fault], tmp_path: Path) -> None:
    """A listener that takes connections and says nothing."""
    write_data(tmp_path)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        address = (
            f"s3://shop/triplets?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http&region=us-east-1"
        )
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
        words = ["cold-start", *SETTINGS, f"run_dir={tmp_path}", f"paths.triplets={address}"]
        began = time.monotonic()
        done = subprocess.run(
            [*LREM, *words], capture_output=True, text=True, timeout=400, env=os.environ | keys, check=False
        )
        seconds = time.monotonic() - began
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert "cannot be read from there" in said
    assert "Traceback" not in said
    assert not (tmp_path / "cold_start").exists()
    told.append(
        Fault(
            "an object store does not answer",
            f"after {seconds:.0f} s of retries the stage ends with the address and what to look at",
            "nothing: nothing was begun",
        )
    )
