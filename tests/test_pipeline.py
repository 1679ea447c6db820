"""Every stage end to end on a very small world, by the command line: artefacts, report, HTTP, and again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lrem.index import load
from lrem.model import ReasoningEmbedder, fingerprint

LREM = [sys.executable, "-m", "ray_apps.cli"]
SYSTEMS = ("bm25", "direct", "cold_start", "lrem")
CATEGORIES = {"all", "hard", "question", "alternative", "negative", "knowledge", "easy"}


def lrem(*words: str, timeout: int = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LREM, *words], capture_output=True, text=True, timeout=timeout, check=False)


def settings(run: Path, port: int) -> list[str]:
    return ["--config", "configs/tiny.yaml", f"run_dir={run}", f"serve.port={port}", "seed=3"]


@pytest.fixture(scope="module")
def port(new_port: Callable[[], int]) -> int:
    return new_port()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, port: int) -> Path:
    """`lrem demo` from nothing."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    done = lrem("demo", *settings(folder, port))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def report(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "report.json").read_text()))


def lines(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_report_has_every_system_stage_and_override(report: dict[str, Any]) -> None:
    assert report["seed"] == 3
    assert report["k"] == {"hit_rate": 30, "precision": 10}
    assert set(report["systems"]) == set(SYSTEMS)
    assert set(report["overrides"]) == {"own", "empty", "random", "query"}
    for row in [*report["systems"].values(), *report["overrides"].values()]:
        assert set(row) == CATEGORIES
        for cell in row.values():
            assert set(cell) == {"hit_rate", "precision"}
            assert all(0 <= value <= 1 for value in cell.values())
    stages = {"world", "curate", "cold-start", "direct", "reinforce", "embed", "index", "evaluate", "serve"}
    assert set(report["seconds"]) == stages
    assert {"ray", "torch", "transformers", "deepspeed", "faiss-cpu"} <= set(report["versions"])
    assert report["overrides"]["own"] == report["systems"]["lrem"]
    assert report["systems"]["bm25"]["easy"]["hit_rate"] > report["systems"]["bm25"]["hard"]["hit_rate"]


def test_the_engines_were_used(report: dict[str, Any], run: Path) -> None:
    assert report["counts"]["weight_syncs"] == 3
    assert report["counts"]["training"]["cold_start"]["zero_stage"] == 2
    steps = lines(run / "logs/reinforce.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:  # the sampler is the policy of this step: every sync took
        assert abs(step["mismatch_kl"]) < 1e-4
        assert step["clip_fraction"] == 0


def test_training_lowers_the_losses(run: Path) -> None:
    steps = lines(run / "logs/cold_start.jsonl")
    first, last = steps[:3], steps[-3:]
    for name in ("sft", "info_nce"):
        assert np.mean([s[name] for s in last]) < np.mean([s[name] for s in first])


def test_artefacts_are_usable_and_nothing_is_left_over(run: Path) -> None:
    model = ReasoningEmbedder.load(run / "model")
    index = load(run / "index", fingerprint(run / "model"))
    assert len(index) == 600
    titles = index.items["title"].to_pylist()[:20]
    for hits, title in zip(index.search(model.encode_items(titles), 1), titles, strict=True):
        assert hits[0].payload["title"] == title
    assert fingerprint(run / "model") != fingerprint(run / "cold_start")
    assert (run / "report.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in run.rglob("*") if path.name.endswith((".tmp", ".start"))]


def test_the_three_questions_were_answered_over_http(report: dict[str, Any], run: Path) -> None:
    assert len(report["examples"]) == 3
    printed = (run / "stdout.txt").read_text()
    for example in report["examples"]:
        assert len(example["lrem"]) == len(example["direct"]) == 5
        assert example["query"].split()[0] in printed


def test_training_again_gives_the_same_model(run: Path, port: int, tmp_path: Path) -> None:
    again = tmp_path / "again"
    done = lrem("cold-start", *settings(run, port), f"paths.cold_start={again}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert fingerprint(again) == fingerprint(run / "cold_start")


@pytest.fixture(scope="module")
def server(run: Path, port: int) -> Iterator[str]:
    """`lrem serve` as a person starts it, ended with Ctrl-C."""
    with subprocess.Popen([*LREM, "serve", *settings(run, port)], stdout=subprocess.PIPE, text=True) as process:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline and not healthy(address):
            time.sleep(1)
        assert healthy(address), "lrem serve did not answer within 240 s"
        yield address
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert not healthy(address)


def healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_the_index_and_the_search_commands(server: str, run: Path) -> None:
    """The served answer is the one that the files give."""
    answer = httpx.post(f"{server}/v1/search", json={"query": "wool socks", "k": 5}, timeout=60).json()
    [result] = answer["results"]
    model = ReasoningEmbedder.load(run / "model")
    vector = model.encode_queries(["wool socks"], [result["reasoning"]])
    [expected] = load(run / "index").search(vector, 5)
    assert [item["item_id"] for item in result["items"]] == [hit.item_id for hit in expected]
    assert [item["score"] for item in result["items"]] == pytest.approx([hit.score for hit in expected], abs=1e-4)
    found = lrem("search", "wool socks", "--url", server, "-k", "5")
    assert found.returncode == 0
    assert all(item["item_id"] in found.stdout for item in result["items"])


def test_search_without_a_server_says_so(new_port: Callable[[], int]) -> None:
    done = lrem("search", "tea", "--url", f"http://127.0.0.1:{new_port()}")
    assert done.returncode == 1
    assert "lrem serve" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
