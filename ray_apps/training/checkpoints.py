"""Checkpoints of a training run: Hugging Face folders that also hold all that is needed to resume exactly.

    checkpoints/NAME/step-00000040/   weights, tokenizer, template: loads anywhere
                      state/          DeepSpeed's shards (weights, optimiser, schedule), random states, cursor.json

A checkpoint is written under a hidden name and renamed when it is complete. Only the newest keeps its state; of the
others the best by the dev set's metric stay as plain folders. The checkpoints of the finished run before are moved to
previous/. All ranks must share the folder.
"""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lrem.errors import DamagedCheckpoint, DataError
from lrem.modeling.model import RECORD
from lrem.training.distributed import rank, sum_over_ranks, world_size
from ray_apps.training.deepspeed_engine import TrainingEngine, full_state
from ray_apps.training.job import RunSignature

STATE, CURSOR, PREVIOUS = "state", "cursor.json", "previous"
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)


class Checkpoints:
    """The checkpoints of one run, in `folder`.

    Args:
        keep: how many of the best stay beside the newest.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def check_resume(self, resume: bool) -> None:
        """Fail fast if `resume` does not fit what is in the folder.

        Raises:
            DataError: there is an unfinished run and `resume` is off, or there is none and it is on.
        """
        newest = self.newest()
        if newest is None and resume:
            raise DataError(f"{self.folder} holds no unfinished run to resume: run again without --resume")
        if newest is not None and not resume:
            raise DataError(
                f"{newest} belongs to an unfinished run: continue it with --resume, or delete {self.folder} to start "
                "over"
            )

    def prepare(self, signature: RunSignature) -> None:
        """Check that the unfinished run has this signature, or move a finished run's checkpoints to previous/.

        The driver calls it before the ranks start.

        Raises:
            DataError: the unfinished run has other settings, data or base weights.
            DamagedCheckpoint: its signature cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.remove_partial()
        newest = self.newest()
        if newest is not None:
            _check_signature(newest, self._read_json(newest, f"{STATE}/{CURSOR}").get("run", {}), signature)
            return
        finished = list(self.folder.glob("step-*"))
        if finished:
            shutil.rmtree(self.folder / PREVIOUS, ignore_errors=True)
            (self.folder / PREVIOUS).mkdir()
        for path in finished:
            path.rename(self.folder / PREVIOUS / path.name)

    def newest(self) -> Path | None:
        """Return the newest checkpoint that can be resumed."""
        resumable = sorted(path.parent.parent for path in self.folder.glob(f"step-*/{STATE}/{CURSOR}"))
        return resumable[-1] if resumable else None

    def trained_seconds(self) -> float:
        """Return the seconds of training that the newest checkpoint records; 0 if there is none."""
        newest = self.newest()
        return 0.0 if newest is None else float(self._read_json(newest, RECORD)["seconds"])

    def autocast(self) -> bool | None:
        """Return whether the newest checkpoint was trained under autocast; None if there is none."""
        newest = self.newest()
        return None if newest is None else bool(self._read_json(newest, RECORD).get("autocast"))

    def restore(self, engine: TrainingEngine) -> int:
        """Load the newest state into the engine and the random generators; return the number of steps done.

        Raises:
            DamagedCheckpoint: the state cannot be read, or is not what was written.
        """
        newest = self.newest()
        if newest is None:
            return 0
        try:
            _verify_checksums(newest / STATE)
            loaded, _ = engine.load_checkpoint(str(newest / STATE), tag="engine")
            random = torch.load(newest / STATE / f"random-{rank()}.pt")
        except (torch.OutOfMemoryError, torch.distributed.DistError):  # not the fault of the files
            raise
        except UNREADABLE as error:
            raise self._damaged(newest, str(error)) from error
        if loaded is None:
            raise self._damaged(newest, "files are missing")
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])
        return int(self._read_json(newest, f"{STATE}/{CURSOR}")["step"])

    def _read_json(self, checkpoint: Path, name: str) -> dict[str, Any]:
        """Read a JSON file of a checkpoint. Raises DamagedCheckpoint."""
        try:
            return dict(json.loads((checkpoint / name).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise self._damaged(checkpoint, f"{name}: {error}") from error

    def _damaged(self, checkpoint: Path, reason: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"{checkpoint / STATE} cannot be read ({reason}): delete {self.folder} to start over; the weights beside "
            f"it may be intact, try model.source={checkpoint} in a new run"
        )

    def remove_partial(self) -> None:
        """Remove unfinished saves and half-removed folders; two ranks may do so at once, the first to rename wins."""
        for partial in self.folder.glob(".step-*"):
            with suppress(FileNotFoundError):
                self._remove(partial)
        for partial in self.folder.glob(".old-*"):
            shutil.rmtree(partial, ignore_errors=True)

    def save(
        self,
        engine: TrainingEngine,
        step: int,
        signature: RunSignature,
        record: dict[str, Any],
        export: Callable[[dict[str, torch.Tensor], Path], None],
    ) -> None:
        """Write the checkpoint after `step` steps; every rank must call.

        Args:
            record: goes into the model folder. export: writes a state dict as a model folder.
        """
        partial, final = self.folder / f".step-{step:08}", self.folder / f"step-{step:08}"
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
            (partial / STATE).mkdir(parents=True)
        _barrier(engine)
        engine.save_checkpoint(str(partial / STATE), tag="engine", save_latest=False)
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        torch.save(random, partial / STATE / f"random-{rank()}.pt")
        state = full_state(engine)
        _barrier(engine)
        if rank() == 0:
            with torch.random.fork_rng():  # the export must not advance the run's random numbers
                export(state, partial)
            (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            (partial / STATE / CURSOR).write_text(json.dumps({"step": step, "run": signature}, indent=2) + "\n")
            if final.exists():
                self._remove(final)
            partial.rename(final)
            self._prune(final)
        _barrier(engine)

    def export_best(self, folder: Path) -> None:
        """Copy the checkpoint with the best dev metric, or the newest without a dev set, leaving out its state."""
        best = max(self.folder.glob("step-*"), key=_quality)
        shutil.copytree(best, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STATE))

    def finish(self) -> None:
        """Remove all state after a finished run: there is nothing left to resume."""
        for state in self.folder.glob(f"step-*/{STATE}"):
            self._remove(state)
        self._prune(None)

    def _prune(self, newest: Path | None) -> None:
        """Keep the best as plain folders, and the newest with its state."""
        ranked = sorted(self.folder.glob("step-*"), key=_quality, reverse=True)
        for path in ranked:
            if path != newest and (path / STATE).exists():
                self._remove(path / STATE)
        for path in ranked[self.keep :]:
            if path != newest:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """Rename, then delete, so that a crash leaves no partial checkpoint that looks complete."""
        hidden = self.folder / f".old-{path.parent.name}-{path.name}"
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden)


def _check_signature(checkpoint: Path, saved: RunSignature, signature: RunSignature) -> None:
    changes = [
        f"{name} was {saved.get(name)}, is {value}" for name, value in signature.items() if saved.get(name) != value
    ]
    if changes:
        raise DataError(
            f"{checkpoint} cannot be resumed: {'; '.join(changes)}. Restore these settings, or start over in another "
            "run_dir"
        )


def _verify_checksums(state: Path) -> None:
    """Verify this rank's share of the files against the checksums in them, which torch writes and does not check.

    Raises:
        ValueError: a file is not what was written. zipfile.BadZipFile, OSError: it cannot be opened.
    """
    for path in sorted(state.rglob("*.pt"))[rank() :: world_size()]:
        with zipfile.ZipFile(path) as archive:
            if entry := archive.testzip():
                raise ValueError(f"{path.name} was altered: the checksum of {entry} does not match")


def _quality(checkpoint: Path) -> tuple[float, str]:
    """Order checkpoints by dev metric, then by age; unreadable ones come last."""
    try:
        record = json.loads((checkpoint / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return -2.0, checkpoint.name
    return record.get("dev", {}).get("hit_rate", -1.0), checkpoint.name


def _barrier(engine: TrainingEngine) -> None:
    """Wait for every rank."""
    sum_over_ranks(torch.zeros(1, device=engine.device))
