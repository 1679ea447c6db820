"""Shared by the tests of the service: a small world to serve, requests, and faults of its replicas."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import openai
import psutil
import pyarrow as pa
import torch

from lrem.config import Config, ModelConfig
from lrem.data.files import sha256, write_parquet
from lrem.index import Collection, Hit
from lrem.index.bulk_load import ItemBatch, build_snapshot
from lrem.index.snapshot import open_snapshot
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from ray_apps.serving import deploy

COLOURS = ("red", "green", "blue", "black", "white", "yellow", "silver")
THINGS = (
    "wool coat",
    "rain boots",
    "camping stove",
    "bicycle helmet",
    "tea pot",
    "office chair",
    "desk lamp",
)
TITLES = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
QUERIES = [f"{thing} in {colour}" for colour, thing in zip(COLOURS, THINGS, strict=True)]


class Served(NamedTuple):
    """A running service, and the same model and index in this process."""

    url: str
    http: httpx.Client
    embedder: ReasoningEmbedder
    index: Collection


def build_world(folder: Path, port: int, seed: int = 0, **serving: Any) -> Config:
    """A model with random weights, and an index of TITLES, with nulls in payloads and lists; two shards."""
    sizes = ModelConfig(vocab_size=400, hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=2)
    embedder = ReasoningEmbedder.from_config(sizes, train_tokenizer(TITLES * 4, 400), seed).eval()
    with torch.no_grad():  # random, tied weights repeat the last token: keep them from repeating `<think>`
        embedder.lm.get_input_embeddings().weight[embedder.renderer.think] = 0
    embedder = embedder.with_matryoshka((16, 32))
    model = embedder.save(folder / "model")
    payloads = [
        {"title": title, "price": None if i % 2 else 9.5, "tags": [title.split()[0], None]}
        for i, title in enumerate(TITLES)
    ]
    ids = [f"p{i}" for i in range(len(TITLES))]
    items = folder / "world/items.parquet"
    write_parquet(pa.table({"item_id": ids, "title": TITLES}), items)
    batch = ItemBatch(ids, payloads, embedder.encode_items(TITLES))
    build_snapshot(folder / "index", [batch], model, embedder.dimension, None, sha256(items))
    return Config.model_validate(
        {
            "run_dir": folder,
            "serve": {"port": port, "shards": 2, "drain_s": 1, "examples": ["tea & <pot>"]} | serving,
            "ray": {"start_timeout_s": 240, "num_cpus": 16},
        }
    )


@contextmanager
def running_service(config: Config, **headers: str) -> Iterator[Served]:
    """The service over a world, started and stopped again."""
    url = deploy.start(config)
    try:
        embedder = ReasoningEmbedder.load(config.path("model")).eval()
        index = open_snapshot(config.path("index"))
        with httpx.Client(base_url=url, timeout=90, headers=headers) as http:
            yield Served(url, http, embedder, index)
        index.close()
    finally:
        deploy.stop()


def search(served: Served, **body: Any) -> dict[str, Any]:
    """Return the JSON of a search, which must succeed."""
    response = served.http.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def openai_client(served: Served, key: str = "none") -> openai.OpenAI:
    """Return OpenAI's own client of the service."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


def assert_error(response: httpx.Response, status: int, fact: str) -> None:
    """Assert that a response is an error of the one shape, whose message contains `fact`."""
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code"}
    assert fact in body["error"]["message"], body
    types = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
    assert body["error"]["type"] == types.get(status, "server_error" if status >= 500 else "invalid_request_error")


def assert_same_items(items: list[dict[str, Any]], hits: list[Hit]) -> None:
    """Assert that items of a response are the hits of a search in this process."""
    assert [item["item_id"] for item in items] == [hit.item_id for hit in hits]
    np.testing.assert_allclose([item["score"] for item in items], [hit.score for hit in hits], atol=1e-5)


def shorten(vectors: np.ndarray, length: int) -> np.ndarray:
    """Return the first `length` numbers of each vector, at unit length."""
    return vectors[:, :length] / np.linalg.norm(vectors[:, :length], axis=1, keepdims=True)


def replica_processes(deployment: str) -> list[psutil.Process]:
    """Return the processes of a deployment's replicas, of this test's own Ray."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if f":{deployment}" in "".join(_command(process)[:1]).split(".")[0]]


@contextmanager
def suspend(deployment: str) -> Iterator[None]:
    """Suspend the replicas of a deployment: they neither answer nor end."""
    processes = replica_processes(deployment)
    assert processes, f"no replica of {deployment}"
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def metric_value(served: Served, series: str) -> float:
    """Return the value of a series of /metrics (name and labels), 0 if it does not exist."""
    lines = (line.rsplit(" ", 1) for line in served.http.get("/metrics").text.splitlines() if line[:1] != "#")
    return float(dict(lines).get(series, 0))


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
