"""Artefacts appear completely or not at all; a lock excludes everyone else."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lrem.data.files import atomic_file, atomic_folder, checksum, exclusive_lock, sha256, write_parquet


def test_an_interrupted_swap_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    with atomic_folder(folder) as part:
        (part / "weights").write_text("old")
    rename, calls = os.rename, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:  # the new folder's turn
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as part:
        (part / "weights").write_text("new")
    assert (folder / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_write_keeps_the_old_artefact(tmp_path: Path) -> None:
    path = write_parquet(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(RuntimeError), atomic_file(path) as part:
        part.write_text("half")
        raise RuntimeError
    folder = tmp_path / "model"
    with atomic_folder(folder) as part:
        (part / "weights").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(folder) as part:
        (part / "weights").write_text("half")
        raise KeyboardInterrupt
    with atomic_folder(folder) as part:
        (part / "other").write_text("new")
    assert pq.read_table(path).to_pydict() == {"x": [1]}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "model"]
    assert [p.name for p in folder.iterdir()] == ["other"]


def test_a_lock_is_exclusive_and_released(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with exclusive_lock(file, 0), pytest.raises(TimeoutError, match="lock"), exclusive_lock(file, 0.1):
        pass
    with exclusive_lock(file, 0):
        pass


def test_the_checksum_of_a_folder_covers_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_text("x")
    assert checksum(tmp_path / "a" / "1") == sha256(tmp_path / "a" / "1")
    checksums = [checksum(tmp_path / "a")]
    (tmp_path / "a" / "1").write_text("y")
    checksums.append(checksum(tmp_path / "a"))
    (tmp_path / "a" / "1").rename(tmp_path / "a" / "2")
    checksums.append(checksum(tmp_path / "a"))
    assert len({*checksums}) == 3
