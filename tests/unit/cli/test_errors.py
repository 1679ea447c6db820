"""What a terminal sees of a failing command: one line that names the path and the remedy, whatever the locale."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError
from safetensors import SafetensorError

from lrem.errors import DataError
from ray_apps.cli.main import _handle
from tests.unit.curation.helpers import write_text

COMMAND = [sys.executable, "-m", "ray_apps.cli.main"]


def run(*arguments: str | bytes, terminal: str = "utf-8") -> tuple[int, str]:
    """Return the exit code of `lrem` and what it printed to a terminal of an encoding."""
    environment = os.environ | {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": terminal, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, timeout=60, check=False)
    return done.returncode, (done.stdout + done.stderr).decode("latin-1")


@pytest.mark.parametrize(
    ("arguments", "code", "facts"),
    [
        (["world", "run_dir=/dev/null/x"], 1, ["/dev/null/x/world", "a part of the path is a file", "run_dir"]),
        (["world", "run_dir=/proc/x"], 1, ["/proc/x"]),
        (["cold-start", "-c", "{folder}"], 2, ["{folder} cannot be read", "pass a YAML file in UTF-8"]),
        (["cold-start", "-c", "{folder}/latin.yaml"], 2, ["latin.yaml cannot be read", "pass a YAML file in UTF-8"]),
        (["search", b"caf\xe9"], 2, ["'caf\\udce9' is not in UTF-8"]),
        (["embed", "paths.items=s3://bucket/items"], 2, ["paths.items=s3://bucket/items must be a local path"]),
    ],
)
def test_an_error_is_one_line(tmp_path: Path, arguments: list[str | bytes], code: int, facts: list[str]) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: caf\xe9\n")
    given = [part.format(folder=tmp_path) if isinstance(part, str) else part for part in arguments]
    returned, printed = run(*given)
    assert returned == code
    assert "Traceback" not in printed
    [line] = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert [fact.format(folder=tmp_path) in line for fact in facts] == [True] * len(facts), line


def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root may write everywhere but there
        folder = Path("/sys/lrem")
    else:
        folder = tmp_path / "locked" / "run"
        folder.parent.mkdir(mode=0o500)
    code, printed = run("world", f"run_dir={folder}")
    assert code == 1
    assert f"error: {folder}" in printed


def test_an_import_says_what_it_read_and_wrote(tmp_path: Path) -> None:
    catalogue = write_text(tmp_path / "items.csv", "item_id,title\n1,tea\n")
    code, printed = run("import", f"sources.catalogue={catalogue}", f"run_dir={tmp_path}/run")
    assert code == 0
    assert f"import reads {catalogue}\n" in printed
    assert "queries.parquet" not in printed
    assert "items read 1" in printed


def test_a_terminal_that_is_not_utf8_gets_replaced_characters(tmp_path: Path) -> None:
    catalogue = write_text(tmp_path / "红.csv", "item_id,title\n1,tea\n")
    code, printed = run("import", f"sources.catalogue={catalogue}", f"run_dir={tmp_path}/run", terminal="iso-8859-1")
    assert (code, "?.csv" in printed) == (0, True)
    code, printed = run("plan", "--items=1e6", "--dim=128", "--qps=50", terminal="iso-8859-1")
    assert (code, "Traceback" in printed) == (0, False)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied: get the permission"),
        (DataError("items.parquet has no rows"), "items.parquet has no rows"),
        (FileNotFoundError("model does not exist: run lrem cold-start"), "model does not exist: run lrem cold-start\n"),
        (sqlite3.OperationalError("database or disk is full"), "(database or disk is full): free some space"),
        (SafetensorError("No space left on device (os error 28)"), "weights could not be written or read (No space"),
        (TimeoutError("waited 5 s for a"), "waited 5 s for a"),
    ],
)
def test_errors_of_workers_are_one_line_too(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _handle(error) == 1
    plain = capsys.readouterr().err
    remote = RayTaskError("work", "a traceback\nof many lines", error)
    assert _handle(remote.as_instanceof_cause()) == 1
    assert capsys.readouterr().err == plain
    assert line in plain
    assert plain.count("\n") == 1


def test_a_bug_is_none_of_these() -> None:
    assert _handle(KeyError("x")) is None
