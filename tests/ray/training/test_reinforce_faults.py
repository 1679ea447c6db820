"""Stage 2 when something happens to it: workers and rollout actors killed, stopped, resumed."""

import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from ray_apps.training import reinforce
from ray_apps.training.checkpoints import CURSOR, STATE
from tests.ray.training.helpers import finish, start_lrem, train_workers, wait_until
from tests.ray.training.reinforce_runs import (
    assert_same_rewards,
    consumed_rows,
    corpus_ids,
    run_config,
    run_settings,
    steps_done,
    steps_of,
    write_data,
)

pytestmark = pytest.mark.slow
LONG = ["reinforce.steps=20"]  # four epochs


@pytest.fixture(scope="module")
def undisturbed_run(cold_start_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed_run")
    write_data(run)
    reinforce.run(run_config(run, cold_start_model, *LONG))
    return run


def test_killed_workers_and_actors_are_replaced(undisturbed_run: Path, cold_start_model: Path, tmp_path: Path) -> None:
    """kill -9 of a training worker, then of a rollout actor: each query once per epoch, and the same rewards."""
    write_data(tmp_path)
    with start_lrem("reinforce", *run_settings(tmp_path, cold_start_model, *LONG)) as process:
        wait_until(lambda: steps_done(tmp_path) >= 5, process, "step 5")
        train_workers(process)[-1].send_signal(signal.SIGKILL)
        wait_until(lambda: steps_done(tmp_path) < 5 or steps_done(tmp_path) >= 9, process, "the restart")
        wait_until(lambda: steps_done(tmp_path) >= 9, process, "step 9")
        family = psutil.Process(process.pid).children(recursive=True)
        actors = [child for child in family if (child.cmdline() or [""])[0].startswith("ray::EngineActor")]
        assert len(actors) == 2
        actors[0].send_signal(signal.SIGKILL)
        finish(process)
    assert consumed_rows(tmp_path) == Counter(dict.fromkeys(corpus_ids(tmp_path), 4))
    assert steps_of(tmp_path)[-1]["actor_restarts"] == 1
    assert_same_rewards(tmp_path, undisturbed_run)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_resumed_run_equals_the_undisturbed_run(
    undisturbed_run: Path, cold_start_model: Path, tmp_path: Path, zero_stage: int
) -> None:
    write_data(tmp_path)
    settings = run_settings(tmp_path, cold_start_model, *LONG, f"reinforce.optim.zero_stage={zero_stage}")
    with start_lrem("reinforce", *settings) as process:
        wait_until(lambda: steps_done(tmp_path) >= 7, process, "step 7")
        process.send_signal(signal.SIGTERM)
        finish(process, 130, seconds=120)
    assert list((tmp_path / "checkpoints/reinforce").glob(f"step-*/{STATE}/{CURSOR}"))
    assert steps_done(tmp_path) < 20  # some steps remain
    with start_lrem("reinforce", *settings, "reinforce.group_size=5", resume=True) as process:
        assert "group_size was 4, is 5" in finish(process, 1, seconds=300)
    with start_lrem("reinforce", *settings, resume=True) as process:
        finish(process)
    assert consumed_rows(tmp_path) == Counter(dict.fromkeys(corpus_ids(tmp_path), 4))
    assert_same_rewards(tmp_path, undisturbed_run)
