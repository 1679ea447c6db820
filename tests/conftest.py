"""What many tests share: a tiny model made on the fly, and free ports."""

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

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from lrem.config import ModelConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from ray_apps.cli.main import main
from tests.ray_cluster import RayHead, ray_head

TITLES = [
    f"{colour} {material} {kind}"
    for colour in ("red", "blue", "green", "black")
    for material in ("wool", "linen", "silk")
    for kind in ("coat", "shirt", "scarf", "hat")
]


def pytest_configure() -> None:
    """No deadline for property tests: an example's time says how busy a shared machine is.

    And a suite that was started in a shell's background would pass on that Ctrl-C is to be ignored.
    """
    hypothesis.settings.register_profile("shared machine", deadline=None)
    hypothesis.settings.load_profile("shared machine")
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny() -> ReasoningEmbedder:
    """A 0.1 M parameter model with random weights; head size 32, as vLLM on a CPU needs."""
    tokenizer = train_tokenizer([f" {title}, winter" for title in TITLES], 400)
    config = ModelConfig(hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=2)
    return ReasoningEmbedder.from_config(config, tokenizer, seed=11)


@pytest.fixture(scope="session")
def tiny_folder(tiny: ReasoningEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, saved."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny.save(folder)
    return folder


def _pick_port() -> int:
    """Below the ports that the system hands out and above Ray's workers: nobody takes it before we do."""
    for port in random.SystemRandom().sample(range(20000, 32000), 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("no free port between 20000 and 32000")


class CommandResult(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def lrem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """A command from its entry point on, in this process: one of its own takes seconds to import everything."""

    def run(*words: str) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["lrem", *words])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, before)
        said = capsys.readouterr()
        return CommandResult(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="module")  # idle it still takes time from whoever comes after
def head() -> Iterator[RayHead]:
    """A cluster that asks for a token and says what it measures every second."""
    measuring = '--system-config={"metrics_report_interval_ms": 1000}'
    with ray_head(Path(f"/tmp/lrem-{_pick_port()}"), _pick_port, ["--num-cpus=8", measuring]) as made:
        yield made


@pytest.fixture(scope="session")
def new_port() -> Callable[[], int]:
    """Gives a port that nothing listens on, another one at each call."""
    return _pick_port
