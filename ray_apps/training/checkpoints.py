"""Checkpoints of a training run: each a Hugging Face folder that also holds what it takes to go on exactly.

    checkpoints/NAME/step-00000040/   weights, tokenizer, template: loads anywhere
                      state/          DeepSpeed's shards (weights, optimiser, schedule), random states, cursor.json

A checkpoint is written beside its place and renamed when whole. Only the newest keeps its state; of the others the
best by the dev set's metric stay as plain folders; those of the run before lie in previous/. The folder has to be one
that all ranks share.
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
from ray_apps.training.launch import full_state

STATE, CURSOR, PREVIOUS = "state", "cursor.json", "previous"
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)


class Checkpoints:
    """The checkpoints of one run, in `folder`.

    Args:
        keep: how many of the best stay beside the newest.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def look(self, resume: bool) -> None:
        """Before anything else: refuse to run over an unfinished run, or to resume none.

        Raises:
            DataError: there is an unfinished run and `resume` is off, or none and it is on.
        """
        newest = self.newest()
        if newest is None and resume:
            raise DataError(f"{self.folder} holds no unfinished run to resume: run again without --resume")
        if newest is not None and not resume:
            raise DataError(
                f"{newest} belongs to an unfinished run: go on with --resume, or delete {self.folder} to start over"
            )

    def begin(self, run: dict[str, Any]) -> None:
        """Before the ranks start: check that the unfinished run is this one, or put a finished run's aside.

        Args:
            run: what has to be the same for a run to go on (data, model, batch, ranks, …).

        Raises:
            DataError: the run was started with other settings, data or weights.
            DamagedCheckpoint: what says so cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.sweep()
        newest = self.newest()
        if newest is not None:
            _check(newest, self._read(newest, f"{STATE}/{CURSOR}").get("run", {}), run)
            return
        old = list(self.folder.glob("step-*"))
        if old:
            shutil.rmtree(self.folder / PREVIOUS, ignore_errors=True)
            (self.folder / PREVIOUS).mkdir()
        for path in old:
            path.rename(self.folder / PREVIOUS / path.name)

    def newest(self) -> Path | None:
        """The newest checkpoint that can be gone on from."""
        found = sorted(path.parent.parent for path in self.folder.glob(f"step-*/{STATE}/{CURSOR}"))
        return found[-1] if found else None

    def spent(self) -> float:
        """Seconds of training in the newest state; 0 where there is none."""
        newest = self.newest()
        return 0.0 if newest is None else float(self._read(newest, RECORD)["seconds"])

    def restore(self, engine: Any) -> int:
        """Load the newest state into the engine and the random generators; returns the steps that are done.

        Raises:
            DamagedCheckpoint: it cannot be read, or is not what was written.
        """
        newest = self.newest()
        if newest is None:
            return 0
        try:
            _prove(newest / STATE)
            loaded, _ = engine.load_checkpoint(str(newest / STATE), tag="engine")
            random = torch.load(newest / STATE / f"random-{rank()}.pt")
        except (torch.OutOfMemoryError, torch.distributed.DistError):  # no fault of the files
            raise
        except UNREADABLE as error:
            raise self._damaged(newest, str(error)) from error
        if loaded is None:
            raise self._damaged(newest, "files are missing")
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])
        return int(self._read(newest, f"{STATE}/{CURSOR}")["step"])

    def _read(self, newest: Path, name: str) -> dict[str, Any]:
        """A JSON file of a checkpoint. Raises DamagedCheckpoint."""
        try:
            return dict(json.loads((newest / name).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise self._damaged(newest, f"{name}: {error}") from error

    def _damaged(self, newest: Path, why: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"{newest / STATE} cannot be read ({why}): if it is damaged, its weights may still be whole, as "
            f"model.source={newest} of a new run; delete {self.folder} to start over"
        )

    def sweep(self) -> None:
        """Remove what a save has begun and not ended. A rank may be about to end it: who renames first has it."""
        for stale in self.folder.glob(".step-*"):
            with suppress(FileNotFoundError):
                self._remove(stale)
        for stale in self.folder.glob(".old-*"):
            shutil.rmtree(stale, ignore_errors=True)

    def save(
        self,
        engine: Any,
        step: int,
        run: dict[str, Any],
        record: dict[str, Any],
        export: Callable[[dict[str, Any], Path], None],
    ) -> None:
        """Write the checkpoint after `step` steps; every rank must call.

        Args:
            run: see `begin`. record: goes into the model folder.
            export: writes a state dict as a model folder.
        """
        part, place = self.folder / f".step-{step:08}", self.folder / f"step-{step:08}"
        if rank() == 0:
            shutil.rmtree(part, ignore_errors=True)  # of an attempt that was killed
            (part / STATE).mkdir(parents=True)
        _meet(engine)
        engine.save_checkpoint(str(part / STATE), tag="engine", save_latest=False)
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        torch.save(random, part / STATE / f"random-{rank()}.pt")
        state = full_state(engine)
        _meet(engine)
        if rank() == 0:
            with torch.random.fork_rng():  # making the folder must not move the run's own random numbers
                export(state, part)
            (part / RECORD).write_text(json.dumps(record, indent=2) + "\n")
            (part / STATE / CURSOR).write_text(json.dumps({"step": step, "run": run}, indent=2) + "\n")
            if place.exists():
                self._remove(place)
            part.rename(place)
            self._prune(place)
        _meet(engine)

    def export(self, folder: Path) -> None:
        """Copy the checkpoint with the best metric, the newest where there is none, without its state."""
        best = max(self.folder.glob("step-*"), key=_merit)
        shutil.copytree(best, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STATE))

    def finish(self) -> None:
        """The run is over: nothing is left to go on from."""
        for state in self.folder.glob(f"step-*/{STATE}"):
            self._remove(state)
        self._prune(None)

    def _prune(self, newest: Path | None) -> None:
        """Keep the best as plain folders, and the newest with its state."""
        ranked = sorted(self.folder.glob("step-*"), key=_merit, reverse=True)
        for path in ranked:
            if path != newest and (path / STATE).exists():
                self._remove(path / STATE)
        for path in ranked[self.keep :]:
            if path != newest:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        """First out of sight, then away: a kill in between leaves nothing that looks whole."""
        aside = self.folder / f".old-{path.parent.name}-{path.name}"
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)


def _check(newest: Path, then: dict[str, Any], run: dict[str, Any]) -> None:
    changed = [f"{name} was {then.get(name)}, is {value}" for name, value in run.items() if then.get(name) != value]
    if changed:
        raise DataError(f"{newest} cannot be resumed: {'; '.join(changed)}. Set these back, or start over elsewhere")


def _prove(state: Path) -> None:
    """Hold this rank's share of the files against the checksums inside them, which torch writes and does not read.

    Raises:
        ValueError: a file is not what was written. zipfile.BadZipFile, OSError: it cannot be opened.
    """
    for path in sorted(state.rglob("*.pt"))[rank() :: world_size()]:
        with zipfile.ZipFile(path) as parts:
            if altered := parts.testzip():
                raise ValueError(f"{path.name} was altered: {altered} has another checksum")


def _merit(path: Path) -> tuple[float, str]:
    """By the dev set's metric, then the newest; what cannot be read is worth least."""
    try:
        record = json.loads((path / RECORD).read_text())
    except (OSError, ValueError):
        return -2.0, path.name
    return record.get("dev", {}).get("hit_rate", -1.0), path.name


def _meet(engine: Any) -> None:
    """Wait for every rank."""
    sum_over_ranks(torch.zeros(1, device=engine.device))
