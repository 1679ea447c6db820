"""Stage 1 when something happens to it: killed, stopped, resumed, killed during a save."""

import contextlib
import json
import signal
from pathlib import Path

import psutil
import pytest
from transformers import AutoModelForCausalLM

from lrem.modeling.model import RECORD
from ray_apps.training.checkpoints import CURSOR, STATE
from tests.ray.training.cold_start_runs import (
    EPOCHS,
    ROUNDING,
    STEPS,
    assert_same_curve,
    consumed_rows,
    corpus_ids,
    start_run,
    steps_done,
    stop_at_step_5,
    write_data,
)
from tests.ray.training.helpers import finish, train_workers, wait_for_workers, wait_until

pytestmark = pytest.mark.slow


def test_a_killed_worker_is_replaced_and_no_row_is_lost(reference_run: Path, tmp_path: Path) -> None:
    """kill -9 of a rank in mid-epoch, twice: the run succeeds, every row is consumed once, the curve is the same."""
    write_data(tmp_path)
    with start_run(tmp_path) as process:
        workers: list[psutil.Process] = []
        for step in (5, 10):
            workers = wait_for_workers(process, workers)
            wait_until(lambda step=step: steps_done(tmp_path) >= step, process, f"step {step}")  # type: ignore[misc]
            workers[-1].send_signal(signal.SIGKILL)
            assert steps_done(tmp_path) < STEPS
        finish(process)
    for epoch in range(EPOCHS):
        assert consumed_rows(tmp_path, epoch) == corpus_ids(tmp_path)
    assert_same_curve(tmp_path, reference_run)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_resumed_run_equals_the_uninterrupted_run(reference_run: Path, tmp_path: Path, zero_stage: int) -> None:
    write_data(tmp_path)
    zero = [f"cold_start.optim.zero_stage={zero_stage}", "cold_start.checkpoint.keep=9"]
    with start_run(tmp_path, *zero) as process:
        stop_at_step_5(tmp_path, process)
        finish(process, 130, seconds=120)
    newest = sorted((tmp_path / "checkpoints/cold_start").glob(f"step-*/{STATE}/{CURSOR}"))[-1].parent.parent
    AutoModelForCausalLM.from_pretrained(newest)
    other_model = ["model.hidden_size=32", "model.heads=1", "model.kv_heads=1"]
    for process, fact in (
        (start_run(tmp_path, *zero), f"{newest} belongs to an unfinished run"),
        (start_run(tmp_path, *zero, "cold_start.batch_size=9", resume=True), "batch_size was 8, is 9"),
        (start_run(tmp_path, *zero, *other_model, resume=True), "model was"),
    ):
        assert fact in finish(process, 1, seconds=300)
    record = json.loads((newest / RECORD).read_text())
    (newest / RECORD).write_text(json.dumps(record | {"seconds": 10_000.0}))
    with start_run(tmp_path, *zero, resume=True) as process:
        finish(process)
    last = max((tmp_path / "checkpoints/cold_start").glob("step-*"))
    assert json.loads((last / RECORD).read_text())["seconds"] > 10_000  # of both parts together
    # the reference run is ZeRO-2
    assert_same_curve(tmp_path, reference_run, ROUNDING if zero_stage == 3 else 1e-12)
    for epoch in range(EPOCHS):
        assert consumed_rows(tmp_path, epoch) == corpus_ids(tmp_path)


def test_resume_restores_the_random_states(tmp_path: Path) -> None:
    """With dropout in the adapters, a stopped and resumed run has the curve of an uninterrupted one."""
    dropout = ["cold_start.lora.rank=4", "cold_start.lora.dropout=0.3", "cold_start.optim.lr=1e-2"]
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    for run in (uninterrupted, resumed):
        write_data(run)
    with start_run(uninterrupted, *dropout) as process:
        finish(process, seconds=300)
    with start_run(resumed, *dropout) as process:
        stop_at_step_5(resumed, process)
        process.communicate(timeout=120)
    with start_run(resumed, *dropout, resume=True) as process:
        finish(process, seconds=300)
    assert_same_curve(resumed, uninterrupted)


def test_a_kill_during_a_save_leaves_no_partial_checkpoint(tmp_path: Path) -> None:
    """Kill every process during a save: each visible checkpoint is complete, and --resume continues the run."""
    write_data(tmp_path)
    checkpoints = tmp_path / "checkpoints/cold_start"
    with start_run(tmp_path, "cold_start.checkpoint.every=1") as process:
        wait_until(lambda: steps_done(tmp_path) >= 4, process, "step 4")
        family = psutil.Process(process.pid).children(recursive=True)  # before the save: it takes longer than one
        writers = train_workers(process)
        wait_until(lambda: any(checkpoints.glob(".step-*/config.json")), process, "a save")
        for child in [*writers, *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.communicate(timeout=60)
    assert list(checkpoints.glob(".step-*")), "the kill came after the save"
    for folder in checkpoints.glob("step-*"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert not (tmp_path / "cold_start").exists()
    with start_run(tmp_path, "cold_start.checkpoint.every=1", resume=True) as process:
        finish(process)
    assert consumed_rows(tmp_path, 1) == corpus_ids(tmp_path)
    assert not list(checkpoints.glob(".*"))
