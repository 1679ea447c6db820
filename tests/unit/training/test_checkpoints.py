"""Checkpoint folders without a run: a finished run is moved aside, damage is named."""

import json
from pathlib import Path

import pytest

from lrem.errors import DamagedCheckpoint
from lrem.modeling.model import RECORD
from ray_apps.training.checkpoints import CURSOR, STATE, Checkpoints


def test_a_new_run_moves_finished_checkpoints_aside(tmp_path: Path) -> None:
    for name in ("step-00000007", "previous/step-00000003"):
        (tmp_path / name).mkdir(parents=True)
    Checkpoints(tmp_path, keep=1).prepare({})
    assert [path.name for path in tmp_path.iterdir()] == ["previous"]
    assert [path.name for path in (tmp_path / "previous").iterdir()] == ["step-00000007"]


def test_a_checkpoint_with_unreadable_records_is_damaged(tmp_path: Path) -> None:
    state = tmp_path / "step-00000007" / STATE
    state.mkdir(parents=True)
    (state / CURSOR).write_text('{"step": 7, "ru')
    checkpoints = Checkpoints(tmp_path, keep=1)
    for read in (lambda: checkpoints.prepare({}), checkpoints.trained_seconds):
        with pytest.raises(DamagedCheckpoint, match=f"{tmp_path}/step-00000007/state"):
            read()


@pytest.mark.parametrize("autocast", [True, False])
def test_a_checkpoint_tells_whether_it_was_trained_in_bfloat16(tmp_path: Path, autocast: bool) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.autocast() is None
    (tmp_path / "step-00000007" / STATE).mkdir(parents=True)
    (tmp_path / "step-00000007" / STATE / CURSOR).write_text("{}")
    (tmp_path / "step-00000007" / RECORD).write_text(json.dumps({"autocast": autocast}))
    assert checkpoints.autocast() is autocast
