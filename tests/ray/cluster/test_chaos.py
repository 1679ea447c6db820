"""Every fault that an operator will meet, once, on real processes: what happens, and what is lost. `make chaos`.

One test per fault. Each ends in recovery, with every row trained exactly once or every acknowledged write present,
or in a clear error after which the work can continue. Prints a table: fault, what happened, what was lost.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.chaos_reinforce import counts
from benchmarks.chaos_reinforce import steps_done as rl_steps_done
from lrem.data.files import write_json
from ray_apps.cluster.session import cluster
from ray_apps.training.checkpoints import STATE
from tests.ray.cluster.faults import (
    count_lost_rows,
    find_children,
    is_driver,
    is_rank,
    resume_refusal,
    stop_run,
    traffic,
    wait_for,
    wait_for_end,
)
from tests.ray.training.cold_start_runs import (
    SETTINGS,
    STEPS,
    start_run,
    steps_done,
    write_data,
)
from tests.ray.training.helpers import LREM, wait_for_workers, wait_until
from tests.ray_cluster import RayHead, ray_node
from tests.serving import build_world, replica_processes, running_service

pytestmark = pytest.mark.slow
TINY = ("--config", "configs/tiny.yaml")
FILES = ("triplets.parquet", "rl_pairs.parquet")


Record = Callable[[str, str, str], None]


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """Add a row to the table (fault, what happened, what was lost); CHAOS_OUT names a file that gets it as JSON."""
    rows: list[tuple[str, str, str]] = []
    yield lambda *row: rows.append(row)
    table = Table("fault", "what happened", "lost", title="Faults", title_justify="left", show_lines=True)
    for row in rows:
        table.add_row(*row)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        Console(width=120).print("", table)
    if out := os.environ.get("CHAOS_OUT"):
        faults = [dict(zip(("fault", "happened", "lost"), row, strict=True)) for row in rows]
        write_json({"faults": faults}, Path(out))


def test_a_training_worker_is_killed(record: Record, tmp_path: Path) -> None:
    write_data(tmp_path)
    with start_run(tmp_path) as process:
        workers = wait_for_workers(process)
        wait_until(lambda: steps_done(tmp_path) >= 5, process, "step 5")
        workers[-1].send_signal(signal.SIGKILL)
        assert steps_done(tmp_path) < STEPS
        began = time.monotonic()
        wait_for_workers(process, workers)
        seconds = time.monotonic() - began
        wait_for_end(process, 0)
    lost = count_lost_rows(tmp_path)
    record(
        "a training worker is killed",
        f"both ranks restarted within {seconds:.0f} s from the newest checkpoint; the run finished normally",
        f"{lost} rows of {2 * 101}",
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


def test_a_rollout_engine_is_killed(record: Record, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    steps = 40
    words = ["reinforce", *TINY, f"run_dir={run}", "seed=3", f"reinforce.steps={steps}", "reinforce.log_rows=true"]
    words += ["rollout.actors=2", "rollout.batch_size=4", "reinforce.checkpoint.every=10"]
    with subprocess.Popen([*LREM, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_until(lambda: rl_steps_done(run) >= 12, process, "step 12")
        find_children("ray::EngineActor", process)[0].send_signal(signal.SIGKILL)
        assert rl_steps_done(run) < steps
        wait_for_end(process, 0)
    queries = counts(run)
    replaced = max(json.loads(line).get("actor_restarts", 0) for line in (run / "logs/reinforce.jsonl").open())
    record(
        "a rollout engine is killed",
        f"{replaced:g} engine was replaced and received the current weights; all {steps} steps were done",
        f"{queries['lost']} of {queries['queries']} queries lost, {queries['twice']} repeated",
    )
    assert (queries["lost"], queries["twice"], replaced, rl_steps_done(run)) == (0, 0, 1, steps)


def test_a_curation_worker_is_killed(record: Record, trained: Path, tmp_path: Path) -> None:
    hit, calm = tmp_path / "hit", tmp_path / "calm"
    for run in (hit, calm):
        shutil.copytree(trained / "world", run / "world")
    words = ["curate", *TINY, "seed=3", "curate.part_rows=2", "curate.actors=2"]
    with subprocess.Popen(
        [*LREM, *words, f"run_dir={hit}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_until(lambda: len(list(hit.glob("curated/work/*/found/*.parquet"))) >= 3, process, "three parts")
        find_children("ray::MapWorker", process)[0].send_signal(signal.SIGKILL)
        assert not (hit / "curated/triplets.parquet").exists()
        wait_for_end(process, 0)
    subprocess.run([*LREM, *words, f"run_dir={calm}"], check=True, stdout=subprocess.DEVNULL, timeout=300)
    same = all((calm / f"curated/{name}").read_bytes() == (hit / f"curated/{name}").read_bytes() for name in FILES)
    record(
        "a curation worker is killed",
        "another worker repeated its part; the files equal those of a run without the fault",
        "nothing" if same else "the files differ",
    )
    assert same


def test_a_machine_dies_while_it_trains(
    record: Record, head: RayHead, new_port: Callable[[], int], tmp_path: Path
) -> None:
    """Three machines for two ranks: the raylet of one is killed, and the third replaces it."""
    write_data(tmp_path)
    offers = ["--num-cpus=1", '--resources={"lrem_training": 1}']
    words = ["cold-start", *SETTINGS, f"run_dir={tmp_path}", "placement.training={lrem_training: 1}"]
    words += ["cold_start.epochs=60", "placement.workers=STRICT_SPREAD"]
    with ray_node(head, new_port, offers), ray_node(head, new_port, offers), ray_node(head, new_port, offers):
        code, output = head.submit("machine", *words, wait=False)
        assert code == 0, output
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
        head.require_success("machine", 300)
    lost = count_lost_rows(tmp_path, 60)
    record(
        "a machine dies while it trains",
        f"its rank restarted on another machine; next steps after {seconds:.0f} s, the job succeeded",
        f"{lost} rows of {60 * 101}",
    )
    assert lost == 0


def test_the_driver_of_a_job_is_killed(record: Record, head: RayHead, tmp_path: Path) -> None:
    write_data(tmp_path)
    words = ["cold-start", *SETTINGS, f"run_dir={tmp_path}", "cold_start.epochs=60"]
    code, output = head.submit("driver", *words, wait=False)
    assert code == 0, output
    checkpoints = tmp_path / "checkpoints/cold_start"
    wait_for(lambda: any(checkpoints.glob(f"step-*/{STATE}/cursor.json")), 240, "a checkpoint")
    [driver] = [one for one in psutil.process_iter(["cmdline"]) if is_driver(one, tmp_path)]
    driver.send_signal(signal.SIGKILL)
    assert not (tmp_path / "cold_start").exists(), "the run ended before the kill"
    wait_for(lambda: "failed" in head.run("ray", "job", "status", "driver").stdout, 60, "the job's failure")
    wait_for(lambda: not any(is_rank(one, head) for one in psutil.process_iter()), 90, "the end of its workers")
    code, output = head.submit("driver-again", *words, "--resume")
    assert code == 0, output
    lost = count_lost_rows(tmp_path, 60)
    record(
        "the driver of a job is killed",
        "the job is FAILED and its workers end; the same job with --resume continues and succeeds",
        f"{lost} rows of {60 * 101}",
    )
    assert lost == 0


def test_an_index_shard_is_killed(record: Record, new_port: Callable[[], int], tmp_path: Path) -> None:
    """While one client writes and another searches; afterwards every acknowledged item is read back."""
    config = build_world(tmp_path, new_port())
    with cluster(config), running_service(config) as served:
        with traffic(served.url) as (written, statuses):
            wait_for(lambda: len(written) > 20, 60, "20 writes")
            replica_processes("IndexShard0")[0].send_signal(signal.SIGKILL)
            before, began = len(written), time.monotonic()
            wait_for(lambda: len(written) > before + 20, 120, "20 more writes")
            seconds = time.monotonic() - began
        lost = [item for item in written if served.http.get(f"/v1/items/{item}").status_code != 200]
    failed = sum(status != 200 for status in statuses)
    record(
        "an index shard is killed",
        f"writes continued after {seconds:.0f} s; {failed} of {len(statuses)} searches failed",
        f"{len(lost)} of {len(written)} acknowledged writes",
    )
    assert statuses
    assert not lost


def test_the_disk_is_full_during_a_checkpoint(record: Record, tmp_path: Path) -> None:
    run = tmp_path / "disk"
    run.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(run)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        record("the disk is full during a checkpoint", "not run: mounting a small disk needs root", "unknown")
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
            output = wait_for_end(process, 1)
        assert "no space left in" in output
        assert "--resume" in output
        assert not list((run / "checkpoints/cold_start").glob(".step-*"))
        ballast.unlink()
        with start_run(run, resume=True) as process:
            wait_for_end(process, 0)
        lost = count_lost_rows(run)
    finally:
        subprocess.run(["umount", "--lazy", str(run)], check=True)
    record(
        "the disk is full during a checkpoint",
        "the run ends with a message that says what to do; with free space --resume continues from the previous "
        "checkpoint",
        f"{lost} rows of {2 * 101}",
    )
    assert lost == 0


def test_a_checkpoint_is_cut_short(record: Record, tmp_path: Path) -> None:
    state = stop_run(tmp_path)
    for file in state.rglob("*.pt"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    resume_refusal(state)
    shutil.rmtree(tmp_path / "checkpoints/cold_start")
    for log in (tmp_path / "logs").iterdir():
        log.unlink() if log.is_file() else shutil.rmtree(log)
    with start_run(tmp_path) as process:
        wait_for_end(process, 0)
    lost = count_lost_rows(tmp_path)
    record(
        "a checkpoint is cut short",
        "--resume refuses it, names the file and what may still be intact; a new run finishes normally",
        f"{lost} rows of {2 * 101}; the steps before the damage",
    )
    assert lost == 0


def test_one_bit_of_a_checkpoint_flips(record: Record, tmp_path: Path) -> None:
    state = stop_run(tmp_path)
    file = max(state.rglob("*.pt"), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    assert f"{file.name} was altered" in resume_refusal(state)
    file.write_bytes(whole)
    with start_run(tmp_path, resume=True) as process:
        wait_for_end(process, 0)
    lost = count_lost_rows(tmp_path)
    record(
        "one bit of a checkpoint is flipped",
        "--resume refuses it and names the file; with the file restored, --resume continues",
        f"{lost} rows of {2 * 101}",
    )
    assert lost == 0


def test_an_object_store_does_not_answer(record: Record, tmp_path: Path) -> None:
    """A listener that accepts connections and never answers."""
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
    output = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, output
    assert "cannot be read (" in output
    assert "Traceback" not in output
    assert not (tmp_path / "cold_start").exists()
    record(
        "an object store does not answer",
        f"after {seconds:.0f} s of retries the stage ends with a message that names the address and what to check",
        "nothing: no work had started",
    )
