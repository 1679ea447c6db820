"""The serving application over real HTTP: a tiny random model and its index behind Ray Serve."""

import asyncio
import base64
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pyarrow as pa
import pytest
import torch
from ray import serve as ray_serve

from lrem.config import Config, load_config
from lrem.data.files import write_parquet
from lrem.errors import ConfigError, DataError, SnapshotError
from lrem.evaluation.metrics import per_query, summarise
from lrem.evaluation.trec import read_qrels, read_run
from lrem.index.snapshot import read_manifest
from lrem.modeling.model import fingerprint
from lrem.modeling.sequences import pad
from ray_apps.cluster.session import cluster
from ray_apps.evaluation import evaluate
from ray_apps.serving import deploy, live_record
from ray_apps.serving.deadline import Phases
from ray_apps.serving.errors import ServiceError
from ray_apps.serving.metrics import Measures
from tests.serving import (
    COLOURS,
    QUERIES,
    THINGS,
    TITLES,
    Served,
    assert_error,
    build_world,
    client,
    counted,
    running,
    search,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, new_port: Callable[[], int]) -> Iterator[Config]:
    """A Ray in which the tests that are refused a start run first, and the application after them."""
    config = build_world(tmp_path_factory.mktemp("served"), new_port())
    with cluster(config):
        yield config


@pytest.fixture(scope="module")
def served(world: Config) -> Iterator[Served]:
    with running(world) as found:
        yield found


def test_a_taken_port_is_one_clear_line(world: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", world.serve.port))
        taken.listen()
        message = f"cannot listen on 127.0.0.1:{world.serve.port} .*serve.port"
        with pytest.raises(ConnectionError, match=message) as caught:
            deploy.start(world)
    assert "\n" not in str(caught.value)


def test_another_models_snapshot_is_refused(world: Config, tmp_path: Path) -> None:
    other = build_world(tmp_path, world.serve.port, seed=1).path("index")
    config = world.model_copy(update={"paths": world.paths.model_copy(update={"index": other})})
    with pytest.raises(SnapshotError) as caught:
        deploy.start(config)
    assert fingerprint(world.path("model")) in str(caught.value)
    assert read_manifest(other)["model"] in str(caught.value)


@pytest.mark.slow
def test_a_damaged_snapshot_is_never_served(world: Config, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(world.path("index"), tmp_path / "index"))
    with (damaged / "ann/index.faiss").open("ab") as stream:
        stream.write(b"x")
    config = world.model_copy(update={"paths": world.paths.model_copy(update={"index": damaged})})
    with pytest.raises(ConnectionError, match=r"did not start: IndexShard.: .*index\.faiss is damaged") as caught:
        deploy.start(config)
    assert "\n" not in str(caught.value)


def assert_same(served_items: list[dict[str, Any]], hits: list[Any]) -> None:
    assert [item["item_id"] for item in served_items] == [hit.item_id for hit in hits]
    np.testing.assert_allclose([i["score"] for i in served_items], [h.score for h in hits], atol=1e-5)


@pytest.mark.parametrize("reason", ["never", "auto", "always"])
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
    assert timings["total"] >= sum(ms for phase, ms in timings.items() if phase != "total") > 0
    assert (timings["reason"] > 0) == (reason != "never")
    assert (timings["route"] > 0) == (reason == "auto")
    assert not answer["degraded"]
    assert answer["missing_shards"] == []


def test_evaluation_of_the_service_equals_that_of_its_files(served: Served, world: Config, tmp_path: Path) -> None:
    queries = {f"q{i}": query for i, query in enumerate(QUERIES)}
    table = {
        "query_id": list(queries),
        "query": list(queries.values()),
        "category": ["negative", "easy"] * 3 + ["easy"],
    }
    judged = [(q, f"p{i}", (i + n) % 3) for n, q in enumerate(queries) for i in range(0, len(TITLES), 2)]
    names = ("query_id", "item_id", "grade")
    write_parquet(pa.table(table), tmp_path / "world" / "queries.parquet")
    write_parquet(
        pa.table(dict(zip(names, zip(*judged, strict=True), strict=True))), tmp_path / "world" / "qrels.parquet"
    )
    items = {"item_id": [f"p{i}" for i in range(len(TITLES))], "title": TITLES}
    write_parquet(pa.table(items), tmp_path / "world" / "items.parquet")
    settings = [f"run_dir={tmp_path}", *(f"paths.{name}={world.path(name)}" for name in ("model", "index"))]
    whole = evaluate.run(load_config(None, [*settings, "evaluate.fusion=[1, 2]"]))
    asked = evaluate.run(load_config(None, [*settings, f"evaluate.url={served.url}"]))
    for mode in ("never", "auto", "always"):
        assert asked["routing"][mode]["scores"] == whole["routing"][mode]["scores"]
        assert asked["routing"][mode]["thinks"] == whole["routing"][mode]["thinks"]
    assert [whole["routing"][mode]["thinks"] for mode in ("never", "always")] == [0, 1]
    for name in ("bm25", "bm25_stems", "lrem", "rewrite", "rrf"):
        assert asked["systems"][name] == whole["systems"][name], name
    assert set(whole["systems"]) == {"bm25", "bm25_stems", "lrem", "rewrite", "rrf"}
    assert set(whole["overrides"]) == {"own", "empty", "random", "query"}
    assert (set(whole["lengths"]), set(whole["fusion"])) == ({"4", "8", "16"}, {"1", "2"})
    assert whole["slices"] == {"all": 7, "hard": 3, "negative": 3, "easy": 4, "difficulty=hard": 7}
    found = read_run(tmp_path / "evaluation" / "lrem-always.run")  # the second evaluation wrote it, from the service
    again = per_query(found, read_qrels(tmp_path / "evaluation" / "qrels.txt"), world.evaluate.k, 10)
    assert summarise(again, {"all": list(queries)})["all"] == pytest.approx(whole["routing"]["always"]["scores"]["all"])
    assert "</html>" in (tmp_path / "evaluation.html").read_text()


def test_an_evaluation_without_its_service_is_one_clear_line(world: Config, tmp_path: Path) -> None:
    write_parquet(pa.table({"query_id": ["q"], "query": ["tea"]}), tmp_path / "world" / "queries.parquet")
    write_parquet(pa.table({"query_id": ["q"], "item_id": ["p0"], "grade": [1]}), tmp_path / "world" / "qrels.parquet")
    write_parquet(pa.table({"item_id": ["p0"], "title": ["tea pot"]}), tmp_path / "world" / "items.parquet")
    config = load_config(None, [f"run_dir={tmp_path}", "evaluate.url=http://127.0.0.1:9"])
    with pytest.raises(ConnectionError, match="no answer from http://127.0.0.1:9"):
        evaluate.run(config)
    wrong = load_config(None, [f"run_dir={tmp_path}", "evaluate.primary=nDCG@7"])
    with pytest.raises(DataError, match="evaluate.primary is 'nDCG@7'"):
        evaluate.run(wrong)


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
    ("/v1/search", {"query": "tea", "reason": "sometimes"}, 422, "'auto', 'always' or 'never'"),
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
    ("/v1/embeddings", {"input": ["tea", "coffee", " "]}, 422, "input.2: is blank"),
    ("/v1/embeddings", {"input": []}, 422, "1 to 2048"),
    ("/v1/embeddings", {"input": [["tea"]]}, 422, "token ids"),
    ("/v1/embeddings", {"input": [1, 999_999]}, 422, "token 999999 is none of this model's"),
    ("/v1/embeddings", {"input": "tea", "dimensions": 17}, 422, "trained for (16, 32, 64)"),
    ("/v1/search", {"query": "tea", "dimensions": 17}, 422, "trained for (16, 32, 64)"),
    ("/v1/search", {"query": "tea", "reasonings": 17}, 422, "reasonings: "),
    ("/v1/embeddings", {"input": "tea", "encoding_format": "hex"}, 422, "'float' or 'base64'"),
    ("/v1/embeddings", {"input": "tea", "input_type": "item", "reason": "always"}, 422, "without thinking"),
    ("/v1/embeddings", {"input": "tea", "model": "gpt"}, 404, "'gpt' is not served"),
    ("/v1/nothing", {}, 404, "/docs"),
    ("/healthz", {}, 405, "/docs"),
]


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


def cut(vectors: np.ndarray, length: int) -> np.ndarray:
    return vectors[:, :length] / np.linalg.norm(vectors[:, :length], axis=1, keepdims=True)


def test_shorter_embeddings(served: Served) -> None:
    create = client(served).embeddings.create
    items = create(model="lrem", input=TITLES[:5], dimensions=16, extra_body={"input_type": "item"})
    np.testing.assert_allclose(vectors_of(items), cut(served.embedder.encode_items(TITLES[:5]), 16), atol=1e-4)
    found = search(served, queries=QUERIES, reason="never", dimensions=16, k=5)
    queries = cut(served.embedder.encode_queries(QUERIES, [""] * len(QUERIES)), 16)
    scores = queries @ cut(served.embedder.encode_items(TITLES), 16).T
    for row, result in zip(scores, found["results"], strict=True):
        np.testing.assert_allclose([item["score"] for item in result["items"]], np.sort(row)[::-1][:5], atol=1e-4)


def test_token_ids_are_taken_as_their_text(served: Served) -> None:
    rows = [served.embedder.tokenizer.encode(f" {query}", add_special_tokens=False) for query in QUERIES]
    create = partial(client(served).embeddings.create, model="lrem", extra_body={"reason": "never"})
    np.testing.assert_allclose(vectors_of(create(input=rows)), vectors_of(create(input=QUERIES)), atol=1e-5)
    np.testing.assert_allclose(vectors_of(create(input=rows[0])), vectors_of(create(input=QUERIES[0])), atol=1e-5)


def test_several_reasonings_are_averaged(served: Served) -> None:
    answer = search(served, queries=QUERIES, reasonings=3, k=49)
    for query, result in zip(QUERIES, answer["results"], strict=True):
        some = result["reasonings"]
        assert (len(some), some[0]) == (3, result["reasoning"])
        assert len(set(some)) > 1
        mean = served.embedder.encode_queries([query] * 3, some).mean(axis=0)
        [expected] = served.index.search(mean[None] / np.linalg.norm(mean), 49)
        assert_same(result["items"], expected)


def test_the_chance_of_no_thought_is_the_models(served: Served) -> None:
    record = live_record.read()
    assert record is not None
    chances = ray_serve.get_deployment_handle("Reasoner", record.application).chances
    renderer = served.embedder.renderer
    batch = pad([[*renderer.query_prompt(query), renderer.think] for query in QUERIES])
    with torch.no_grad():
        logits = served.embedder.lm(batch.ids).logits[torch.arange(len(QUERIES)), batch.lengths - 1]
    expected = logits.softmax(-1)[:, renderer.close].tolist()
    assert chances.remote(QUERIES).result(timeout_s=60) == pytest.approx(expected, rel=1e-3)


def test_a_query_is_thought_over_once(served: Served) -> None:
    first = search(served, query="a  never  asked query")
    again = search(served, query=" a never asked query ")
    assert first["timings_ms"]["reason"] > 0
    assert again["timings_ms"]["reason"] == again["timings_ms"]["embed"] == 0
    assert again["results"][0]["items"] == first["results"][0]["items"]
    assert counted(served, 'lrem_cache_queries_total{found="yes"}') >= 1
    assert counted(served, 'lrem_phase_seconds_count{phase="search"}') >= 2
    assert counted(served, 'lrem_requests_total{path="/v1/search",status="200"}') >= 2


def test_the_histograms_say_what_the_answer_says(served: Served) -> None:
    sums = [f'lrem_phase_seconds_sum{{phase="{phase}"}}' for phase in ("route", "reason", "embed", "search")]
    before = [counted(served, series) for series in sums]
    timings = search(served, query="how long does this one take")["timings_ms"]
    spent = [1000 * (counted(served, series) - was) for series, was in zip(sums, before, strict=True)]
    assert spent == pytest.approx([timings[phase] for phase in ("route", "reason", "embed", "search")], abs=0.02)


def test_ready(served: Served) -> None:
    assert served.http.get("/readyz").json() == {"ready": True, "missing": []}


@pytest.mark.slow
def test_everything_as_one_application(served: Served, world: Config) -> None:
    """As `serve deploy` runs it: one shard of its own, and the same answers."""
    settings = [f"run_dir={world.run_dir}", "serve.shards=1", "serve.embedder.max_replicas=2"]
    whole = deploy.application({"settings": settings})
    ray_serve.run(whole, name="whole", route_prefix="/whole")
    try:
        body = {"queries": QUERIES, "k": 5, "reason": "never"}
        answer = served.http.post("/whole/v1/search", json=body).json()
    finally:
        ray_serve.delete("whole")
    for one, other in zip(answer["results"], search(served, **body)["results"], strict=True):
        assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in other["items"]]


def test_one_deadline_for_all_phases_and_the_late_one_is_named() -> None:
    async def late() -> ServiceError:
        phases = Phases(60.0, Measures())
        await phases.run("reason", asyncio.sleep(0))
        phases.start -= 61.0  # as if the first phase had taken that long
        with pytest.raises(ServiceError, match="'search'") as caught:
            await phases.run("search", asyncio.sleep(5))
        with pytest.raises(TimeoutError):  # a limit of its own is no end of the request
            await Phases(60.0, Measures()).run("reason", asyncio.sleep(5), at_most_s=0.01)
        return caught.value

    assert asyncio.run(late()).status == 504


def test_time_is_left_to_answer_without_thinking() -> None:
    message = r"reason_timeout_s \(10\) and search_timeout_s \(5\) leave no time .* in timeout_s \(15\)"
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["serve.timeout_s=15"])


@pytest.fixture
def think_below(served: Served, world: Config) -> Iterator[float]:
    """A `serve.think_below` that some of QUERIES are thought over with, and some are not."""
    chances = sorted(served.embedder.chances(QUERIES))
    low, high = max(pairwise(chances), key=lambda pair: pair[1] / pair[0])
    assert high > 1.01 * low  # vLLM's chances are the same up to a thousandth
    changed = world.serve.model_copy(update={"think_below": (low + high) / 2})
    deploy.start(world.model_copy(update={"serve": changed}))
    yield changed.think_below
    deploy.start(world)


def test_auto_thinks_where_the_chance_of_no_thought_is_low(served: Served, think_below: float) -> None:
    found, never, always = (
        search(served, queries=QUERIES, k=12, reason=reason)["results"] for reason in ("auto", "never", "always")
    )
    thinks = [chance < think_below for chance in served.embedder.chances(QUERIES)]
    assert set(thinks) == {True, False}
    for result, thought_over, direct, thought in zip(found, thinks, never, always, strict=True):
        assert result["reasoning"] == (thought["reasoning"] if thought_over else None)
        expected = (thought if thought_over else direct)["items"]
        assert [item["item_id"] for item in result["items"]] == [item["item_id"] for item in expected]
        scores = [[item["score"] for item in items] for items in (result["items"], expected)]
        np.testing.assert_allclose(*scores, atol=1e-5)
    several = search(served, queries=QUERIES, k=12, reasonings=2)["results"]
    assert [result["reasoning"] is not None for result in several] == thinks


def test_no_request_of_the_contract_ends_in_a_server_error(served: Served, tmp_path: Path) -> None:
    """schemathesis makes requests, good and bad, from the service's own OpenAPI schema; it writes, so it comes last."""
    command = ["schemathesis", "run", f"{served.url}/openapi.json", "--checks", "not_a_server_error"]
    options = ["--max-examples", "25", "--seed", "7", "--request-timeout", "60", "--no-color"]
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [program, *command[1:], *options], cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"(\d{3,}) generated, \1 passed", done.stdout), done.stdout[-3000:]
