"""Fixtures of many tests: a tiny model built on the fly, the command line, a Ray cluster, free ports."""

import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest
import torch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from lrem.config import ModelConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from ray_apps.cli.main import main
from tests.ray_cluster import RayHead, ray_head
from tests.tiny_llama import save_tiny_llama

TITLES = [
    f"{colour} {material} {kind}"
    for colour in ("red", "blue", "green", "black")
    for material in ("wool", "linen", "silk")
    for kind in ("coat", "shirt", "scarf", "hat")
]


def pytest_configure() -> None:
    """Set no deadline for property tests, one thread for tiny models (more cost them time), and restore Ctrl-C.

    A suite that runs in the background of a shell would make its child processes ignore Ctrl-C.
    """
    torch.set_num_threads(1)
    hypothesis.settings.register_profile("shared machine", deadline=None)
    hypothesis.settings.load_profile("shared machine")
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny() -> ReasoningEmbedder:
    """A model of 0.1 M random parameters; its head size is 32, which vLLM needs on a CPU."""
    tokenizer = train_tokenizer([f" {title}, winter" for title in TITLES], 400)
    config = ModelConfig(hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=2)
    return ReasoningEmbedder.from_config(config, tokenizer, seed=11)


@pytest.fixture(scope="session")
def tiny_folder(tiny: ReasoningEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save(folder)
    return folder


@pytest.fixture(scope="session")
def llama_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretrained tiny Llama that knows nothing of us."""
    return save_tiny_llama(tmp_path_factory.mktemp("source") / "llama", [f" {title}, winter" for title in TITLES])


@pytest.fixture(scope="session")
def tiny_llama(llama_source: Path) -> ReasoningEmbedder:
    """The tiny Llama with our tokens and the compact template."""
    return ReasoningEmbedder.load(llama_source, limits=ModelConfig(source=str(llama_source), template="compact"))


@pytest.fixture(scope="session", params=["tiny", "tiny_llama"])
def embedder(request: pytest.FixtureRequest) -> ReasoningEmbedder:
    """A fresh tiny Qwen2, and a pretrained tiny Llama."""
    model: ReasoningEmbedder = request.getfixturevalue(request.param)
    return model


@pytest.fixture(scope="session")
def embedder_folder(embedder: ReasoningEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of either model."""
    folder = tmp_path_factory.mktemp("model") / "either"
    embedder.save(folder)
    return folder


def _pick_port() -> int:
    """Return a free port below the system's ephemeral ports and above those of Ray's workers, so that it stays free."""
    for port in random.SystemRandom().sample(range(20000, 32000), 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("no free port between 20000 and 32000")


class CommandResult(NamedTuple):
    """Exit code and output of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def lrem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Run an `lrem` command in this process: a new process would take seconds to import everything."""

    def run(*words: str) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["lrem", *words])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as end:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        output = capsys.readouterr()
        return CommandResult(int(end.value.code or 0), output.out, output.err)

    return run


@pytest.fixture(scope="module")  # not longer: even an idle cluster slows down the tests of other modules
def head() -> Iterator[RayHead]:
    """A cluster that requires a token and exports its metrics every second."""
    metrics_every_second = '--system-config={"metrics_report_interval_ms": 1000}'
    with ray_head(Path(f"/tmp/lrem-{_pick_port()}"), _pick_port, ["--num-cpus=8", metrics_every_second]) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def new_port() -> Callable[[], int]:
    """Return a function that returns a free port, a different one on each call."""
    return _pick_port
