"""What the tests of the service share: a small world to serve, and ways to ask it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import psutil
import pyarrow as pa
import torch

from lrem.config import Config, ModelConfig
from lrem.data.files import sha256, write_parquet
from lrem.index import Collection
from lrem.index.bulk_load import Batch, write
from lrem.index.snapshot import load
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
    """A running application, and the same model and index in this process."""

    url: str
    http: httpx.Client
    embedder: ReasoningEmbedder
    index: Collection


def build_world(folder: Path, port: int, seed: int = 0, **serving: Any) -> Config:
    """A model with random weights, and an index of TITLES with awkward payload; two shards."""
    sizes = ModelConfig(vocab_size=400, hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=2)
    embedder = ReasoningEmbedder.from_config(sizes, train_tokenizer(TITLES * 4, 400), seed).eval()
    with torch.no_grad():  # a model with random, tied weights repeats its last token: not `<think>`, please
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
    batch = Batch(ids, payloads, embedder.encode_items(TITLES))
    write(folder / "index", [batch], model, embedder.dimension, None, sha256(items))
    return Config.model_validate(
        {
            "run_dir": folder,
            "serve": {"port": port, "shards": 2, "drain_s": 1, "examples": ["tea & <pot>"]} | serving,
            "ray": {"start_timeout_s": 240, "num_cpus": 16},
        }
    )


@contextmanager
def running(config: Config, **headers: str) -> Iterator[Served]:
    """The application over a world, started and stopped again."""
    url = deploy.start(config)
    try:
        embedder = ReasoningEmbedder.load(config.path("model")).eval()
        index = load(config.path("index"))
        with httpx.Client(base_url=url, timeout=90, headers=headers) as http:
            yield Served(url, http, embedder, index)
        index.close()
    finally:
        deploy.stop()


def search(served: Served, **body: Any) -> dict[str, Any]:
    """The answer to a search that succeeds."""
    answer = served.http.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def client(served: Served, key: str = "none") -> openai.OpenAI:
    """OpenAI's own client."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


def assert_error(answer: httpx.Response, status: int, part: str) -> None:
    """The one shape of errors."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code"}
    assert part in body["error"]["message"], body
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
    assert body["error"]["type"] == kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")


def replicas(deployment: str) -> list[psutil.Process]:
    """The processes of a deployment's replicas, of this test's own Ray."""
    family = psutil.Process().children(recursive=True)
    return [process for process in family if f":{deployment}" in "".join(_words(process)[:1]).split(".")[0]]


@contextmanager
def suspended(deployment: str) -> Iterator[None]:
    """The replicas of a deployment held still: they neither answer nor end."""
    found = replicas(deployment)
    assert found, f"no replica of {deployment}"
    for process in found:
        process.suspend()
    try:
        yield
    finally:
        for process in found:
            process.resume()


def counted(served: Served, series: str) -> float:
    """A number of /metrics, 0 where it is not there; `series` with its labels."""
    lines = (line.rsplit(" ", 1) for line in served.http.get("/metrics").text.splitlines() if line[:1] != "#")
    return float(dict(lines).get(series, 0))


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []
