"""The serving application over real HTTP: a tiny random model and its index behind Ray Serve."""

import asyncio
import base64
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import openai
import pyarrow as pa
import pytest
import torch
from ray import serve as ray_serve

from lrem.config import Config
from lrem.index import SnapshotError, VectorIndex, load, save
from lrem.index.shard import merge, owner, take
from lrem.model import ReasoningEmbedder, fingerprint
from lrem.settings import ModelConfig
from lrem.tokenizer import train_tokenizer
from ray_apps import api, serve
from ray_apps.cluster import cluster
from ray_apps.ingress import Ingress, Phases

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
    index: VectorIndex


def build_world(folder: Path, port: int, seed: int = 0) -> Config:
    """A model with random weights, and an index of TITLES with awkward payload; two shards."""
    sizes = ModelConfig(vocab_size=400, hidden_size=64, intermediate_size=96, layers=2, heads=2, kv_heads=2)
    embedder = ReasoningEmbedder.from_config(sizes, train_tokenizer(TITLES * 4, 400), seed).eval()
    with torch.no_grad():  # a model with random, tied weights repeats its last token: not `<think>`, please
        embedder.lm.get_input_embeddings().weight[embedder.renderer.think] = 0
    model = embedder.save(folder / "model")
    items = pa.table(
        {
            "item_id": [f"p{i}" for i in range(len(TITLES))],
            "title": TITLES,
            "price": [float("nan") if i % 2 else 9.5 for i in range(len(TITLES))],
            "tags": [[title.split()[0], None] for title in TITLES],
        }
    )
    save(VectorIndex.build(items, embedder.encode_items(TITLES), model), folder / "index")
    return Config.model_validate(
        {
            "run_dir": folder,
            "serve": {"port": port, "shards": 2, "examples": ["tea & <pot>"]},
            "ray": {"start_timeout_s": 240},
        }
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, new_port: Callable[[], int]) -> Iterator[Config]:
    """A Ray in which the tests that are refused a start run first, and the application after them."""
    config = build_world(tmp_path_factory.mktemp("served"), new_port())
    with cluster(config):
        yield config


@pytest.fixture(scope="module")
def served(world: Config) -> Iterator[Served]:
    url = serve.start(world)
    try:
        embedder = ReasoningEmbedder.load(world.path("model")).eval()
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Served(url, http, embedder, load(world.path("index")))
    finally:
        serve.stop()


def test_a_taken_port_is_one_clear_line(world: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", world.serve.port))
        taken.listen()
        message = f"cannot listen on 127.0.0.1:{world.serve.port} .*serve.port"
        with pytest.raises(ConnectionError, match=message) as caught:
            serve.start(world)
    assert "\n" not in str(caught.value)


def test_another_models_snapshot_is_refused(world: Config, tmp_path: Path) -> None:
    other = build_world(tmp_path, world.serve.port, seed=1).path("index")
    config = world.model_copy(update={"paths": world.paths.model_copy(update={"index": other})})
    with pytest.raises(SnapshotError) as caught:
        serve.start(config)
    assert fingerprint(world.path("model")) in str(caught.value)
    assert load(other).model in str(caught.value)


def test_a_damaged_snapshot_is_never_served(world: Config, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(world.path("index"), tmp_path / "index"))
    with (damaged / "index.faiss").open("ab") as stream:
        stream.write(b"x")
    config = world.model_copy(update={"paths": world.paths.model_copy(update={"index": damaged})})
    with pytest.raises(ConnectionError, match=r"did not start: IndexShard.: .*index\.faiss is damaged") as caught:
        serve.start(config)
    assert "\n" not in str(caught.value)


def search(served: Served, **body: Any) -> dict[str, Any]:
    answer = served.http.post("/v1/search", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def assert_same(served_items: list[dict[str, Any]], hits: list[Any]) -> None:
    assert [item["item_id"] for item in served_items] == [hit.item_id for hit in hits]
    np.testing.assert_allclose([i["score"] for i in served_items], [h.score for h in hits], atol=1e-5)


@pytest.mark.parametrize("reason", ["never", "always"])
def test_search_equals_in_process(served: Served, reason: str) -> None:
    answer = search(served, queries=QUERIES, k=12, reason=reason)
    reasonings = [result["reasoning"] for result in answer["results"]]
    assert all(r is None if reason == "never" else r.strip() for r in reasonings)
    thoughts = [reasoning or "" for reasoning in reasonings]
    expected = served.index.search(served.embedder.encode_queries(QUERIES, thoughts), 12)
    for query, result, hits in zip(QUERIES, answer["results"], expected, strict=True):
        assert result["query"] == query
        assert_same(result["items"], hits)
    assert answer["model"] == served.index.model
    timings = answer["timings_ms"]
    assert timings["total"] >= timings["embed"] + timings["search"] + timings["reason"] > 0
    assert (timings["reason"] > 0) == (reason == "always")


def test_payload_is_json(served: Served) -> None:
    items = search(served, query="red wool coat", k=49, reason="never")["results"][0]["items"]
    payload = {item["item_id"]: item["payload"] for item in items}
    assert len(items) == len(TITLES)
    assert payload["p1"] == {"title": "red rain boots", "price": None, "tags": ["red", None]}
    assert payload["p0"]["price"] == 9.5


def test_a_filter_goes_through_all_shards(served: Served) -> None:
    where = {"tags": {"$in": ["red", "blue"]}, "price": {"$exists": False}}
    fits = {f"p{i}" for i, title in enumerate(TITLES) if title.split()[0] in ("red", "blue") and i % 2}
    items = search(served, query=QUERIES[0], k=49, reason="never", filter=where)["results"][0]["items"]
    assert {item["item_id"] for item in items} == fits
    everything = search(served, query=QUERIES[0], k=49, reason="never")["results"][0]["items"]
    assert items == [item for item in everything if item["item_id"] in fits]
    assert search(served, query=QUERIES[0], reason="never", filter={"tags": "pink"})["results"][0]["items"] == []


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
def test_shards_give_the_same_top_k_as_one_index(served: Served, factory: str) -> None:
    whole = served.index
    vectors = served.embedder.encode_items(TITLES)
    index = VectorIndex.build(whole.items, vectors, whole.model, factory)
    shards = [take(index, shard, 3) for shard in range(3)]
    for number, shard in enumerate(shards):
        assert {owner(item_id, 3) for item_id in shard.items["item_id"].to_pylist()} == {number}
    assert sum(map(len, shards)) == len(whole)
    queries = served.embedder.encode_queries(QUERIES, [None] * len(QUERIES))
    parts = zip(*(shard.search(queries, 10) for shard in shards), strict=True)
    for hits, expected in zip((merge(part, 10) for part in parts), whole.search(queries, 10), strict=True):
        assert [hit.item_id for hit in hits] == [hit.item_id for hit in expected]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in expected], atol=1e-5)


def vectors_of(answer: Any) -> np.ndarray:
    """The client decodes base64 that it asked for by itself, and leaves what the caller asked for."""
    rows = [row.embedding for row in answer.data]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows)


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_embeddings_equal_training_ones(served: Served, encoding: Any) -> None:
    create = partial(client(served).embeddings.create, model="lrem", **encoding)
    items = create(input=TITLES[:5], extra_body={"input_type": "item"})
    np.testing.assert_allclose(vectors_of(items), served.embedder.encode_items(TITLES[:5]), atol=1e-4)
    as_queries = create(input=TITLES[:5], extra_body={"reason": "never"})
    assert np.abs(vectors_of(as_queries) - vectors_of(items)).max() > 0.01
    direct = create(input=QUERIES[0], extra_body={"reason": "never"})
    expected = served.embedder.encode_queries(QUERIES[:1], [""])
    np.testing.assert_allclose(vectors_of(direct), expected, atol=1e-4)
    assert [row.index for row in items.data] == [0, 1, 2, 3, 4]
    renderer = served.embedder.renderer
    assert items.usage.total_tokens == sum(len(renderer.item(title)) for title in TITLES[:5])
    assert direct.usage.prompt_tokens == direct.usage.total_tokens == len(renderer.query(QUERIES[0], ""))


def test_embeddings_think_by_default(served: Served) -> None:
    answer = client(served).embeddings.create(model=served.index.model, input=QUERIES)
    found = search(served, queries=QUERIES, k=1)
    reasonings = [result["reasoning"] for result in found["results"]]
    expected = served.embedder.encode_queries(QUERIES, reasonings)
    np.testing.assert_allclose([row.embedding for row in answer.data], expected, atol=1e-4)
    renderer = served.embedder.renderer
    total = sum(len(renderer.query(*pair)) for pair in zip(QUERIES, reasonings, strict=True))
    assert answer.usage.total_tokens == total > answer.usage.prompt_tokens


JSON = {"content-type": "application/json"}
ERRORS = [
    ("/v1/search", {"query": "  "}, 422, "blank"),
    ("/v1/search", {"query": "a" * 2001}, 422, "2001 characters"),
    ("/v1/search", {"query": "tea", "k": 0}, 422, "k: "),
    ("/v1/search", {"query": "tea", "k": 1001}, 422, "1000"),
    ("/v1/search", {"query": "tea", "reason": "sometimes"}, 422, "'always' or 'never'"),
    ("/v1/search", {"queries": ["tea"] * 65}, 422, "64"),
    ("/v1/search", {"queries": []}, 422, "queries: "),
    ("/v1/search", {}, 422, "either 'query'"),
    ("/v1/search", {"query": "tea", "queries": ["tea"]}, 422, "either 'query'"),
    ("/v1/search", {"query": "tea", "kk": 3}, 422, "kk: no such field"),
    ("/v1/search", {"query": "tea", "filter": {"price": {"$lt": "9"}}}, 422, "filter: price.$lt: str given, a number"),
    ("/v1/search", {"query": "tea", "filter": {"tags": {"$has": 1}}}, 422, "filter: tags.$has: no such operator"),
    ("/v1/search", {"query": "tea", "filter": {"n": 10**400}}, 422, "filter: n: whole numbers beyond 2^53"),
    ("/v1/search", {"query": "tea", "filter": "price < 9"}, 422, "filter: "),
    ("/v1/search", {"query": "tea", "\ud800": 3}, 422, "unicode"),
    ("/v1/search", {"query": "\ud800"}, 422, "query: holds half"),
    ("/v1/search", [], 422, ""),
    ("/v1/embeddings", {"input": ""}, 422, "blank"),
    ("/v1/embeddings", {"input": []}, 422, "input: "),
    ("/v1/embeddings", {"input": "tea", "encoding_format": "hex"}, 422, "'float' or 'base64'"),
    ("/v1/embeddings", {"input": "tea", "input_type": "item", "reason": "always"}, 422, "without thinking"),
    ("/v1/embeddings", {"input": "tea", "model": "gpt"}, 404, "'gpt' is not served"),
    ("/v1/nothing", {}, 404, "/docs"),
    ("/healthz", {}, 405, "/docs"),
]


def assert_error(answer: httpx.Response, status: int, part: str) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "code"}
    assert part in body["error"]["message"]
    assert body["error"]["type"] == ("timeout_error" if status == 504 else "invalid_request_error")


@pytest.mark.parametrize(("path", "body", "status", "part"), ERRORS)
def test_errors_have_one_shape(served: Served, path: str, body: Any, status: int, part: str) -> None:
    content = json.dumps(body)  # ASCII escapes: half a surrogate pair gets through
    assert_error(served.http.post(path, content=content, headers=JSON), status, part)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{", b"[" * 100_000])
def test_a_body_that_is_not_json_is_refused(served: Served, content: bytes) -> None:
    answer = served.http.post("/v1/search", content=content, headers=JSON)
    assert_error(answer, answer.status_code, "")
    assert 400 <= answer.status_code < 500


def test_openai_client_reads_our_errors(served: Served) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="blank"):
        client(served).embeddings.create(model="lrem", input=" ")


def test_concurrent_searches_equal_serial_ones(served: Served) -> None:
    queries = [f"{thing} for {colour} days" for colour in COLOURS[:4] for thing in THINGS[:4]]
    serial = [search(served, query=query)["results"][0] for query in queries]
    with ThreadPoolExecutor(len(queries)) as pool:
        together = list(pool.map(lambda query: search(served, query=query)["results"][0], queries))
    for alone, crowded in zip(serial, together, strict=True):
        assert alone["reasoning"] == crowded["reasoning"]
        assert [item["item_id"] for item in alone["items"]] == [item["item_id"] for item in crowded["items"]]
        scores = [[item["score"] for item in result["items"]] for result in (alone, crowded)]
        np.testing.assert_allclose(*scores, atol=1e-5)


def test_models_health_page_and_docs(served: Served) -> None:
    models = client(served).models.list()
    assert [model.id for model in models.data] == [served.index.model]
    assert served.http.get("/healthz").json() == {"status": "ok", "model": served.index.model}
    page = served.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert '<form id="form" role="search">' in page.text
    assert "tea &amp; &lt;pot&gt;" in page.text  # serve.examples, as text
    assert "innerHTML" not in page.text
    assert "http" not in page.text.replace("httpx", ""), "the page must not load anything from elsewhere"
    assert served.http.get("/docs").status_code == 200
    assert "/v1/search" in served.http.get("/openapi.json").json()["paths"]


def test_a_late_phase_is_named(served: Served) -> None:
    """The same replicas behind a second ingress that has no time."""
    names = ("Reasoner", "Embedder", "IndexShard0")
    reasoner, embedder, shard = (ray_serve.get_deployment_handle(name, serve.APP) for name in names)
    hasty = ray_serve.deployment(Ingress).bind(served.index.model, 0.001, reasoner, embedder, [shard], [])
    ray_serve.run(hasty, name="hasty", route_prefix="/hasty")
    try:
        for reason, phase in (("always", "reason"), ("never", "embed")):
            answer = served.http.post("/hasty/v1/search", json={"query": "tea", "reason": reason})
            assert_error(answer, 504, f"'{phase}'")
    finally:
        ray_serve.delete("hasty")
    assert search(served, query="tea")["results"][0]["items"]


def test_one_deadline_for_all_phases() -> None:
    async def late() -> api.ServiceError:
        phases = Phases(60.0)
        await phases.run("reason", asyncio.sleep(0))
        phases.start -= 61.0  # as if the first phase had taken that long
        with pytest.raises(api.ServiceError, match="'search'") as caught:
            await phases.run("search", asyncio.sleep(5))
        return caught.value

    assert asyncio.run(late()).status == 504
