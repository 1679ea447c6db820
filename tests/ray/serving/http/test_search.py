"""Search over HTTP equals search in this process, alone and with concurrent requests."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.serving import (
    COLOURS,
    QUERIES,
    THINGS,
    TITLES,
    Served,
    assert_error,
    assert_same_items,
    metric_value,
    openai_client,
    search,
    shorten,
)


@pytest.mark.parametrize("reason", ["never", "auto", "always"])
def test_search_equals_in_process(served: Served, reason: str) -> None:
    response = search(served, queries=QUERIES, k=12, reason=reason)
    reasonings = [result["reasoning"] for result in response["results"]]
    assert all(r is None if reason == "never" else r.strip() for r in reasonings)
    thoughts = [reasoning or "" for reasoning in reasonings]
    expected = served.index.search(served.embedder.encode_queries(QUERIES, thoughts), 12)
    for query, result, hits in zip(QUERIES, response["results"], expected, strict=True):
        assert result["query"] == query
        assert_same_items(result["items"], hits)
    assert response["model"] == served.index.model
    timings = response["timings_ms"]
    assert timings["total"] >= sum(ms for phase, ms in timings.items() if phase != "total") > 0
    assert (timings["reason"] > 0) == (reason != "never")
    assert (timings["route"] > 0) == (reason == "auto")
    assert not response["degraded"]
    assert response["missing_shards"] == []


def test_payloads_keep_nulls_and_lists(served: Served) -> None:
    items = search(served, query="red wool coat", k=49, reason="never")["results"][0]["items"]
    payload = {item["item_id"]: item["payload"] for item in items}
    assert len(items) == len(TITLES)
    assert payload["p1"] == {"title": "red rain boots", "price": None, "tags": ["red", None]}
    assert payload["p0"]["price"] == 9.5


def test_a_filter_applies_to_all_shards(served: Served) -> None:
    where = {"tags": {"$in": ["red", "blue"]}, "price": {"$exists": False}}
    matches = {f"p{i}" for i, title in enumerate(TITLES) if title.split()[0] in ("red", "blue") and i % 2}
    items = search(served, query=QUERIES[0], k=49, reason="never", filter=where)["results"][0]["items"]
    assert {item["item_id"] for item in items} == matches
    unfiltered = search(served, query=QUERIES[0], k=49, reason="never")["results"][0]["items"]
    assert items == [item for item in unfiltered if item["item_id"] in matches]
    assert search(served, query=QUERIES[0], reason="never", filter={"tags": "pink"})["results"][0]["items"] == []


def test_search_with_shorter_vectors(served: Served) -> None:
    response = search(served, queries=QUERIES, reason="never", dimensions=16, k=5)
    queries = shorten(served.embedder.encode_queries(QUERIES, [""] * len(QUERIES)), 16)
    scores = queries @ shorten(served.embedder.encode_items(TITLES), 16).T
    for row, result in zip(scores, response["results"], strict=True):
        np.testing.assert_allclose([item["score"] for item in result["items"]], np.sort(row)[::-1][:5], atol=1e-4)


def test_concurrent_searches_equal_serial_ones(served: Served) -> None:
    queries = [f"{thing} for {colour} days" for colour in COLOURS[:4] for thing in THINGS[:4]]
    serial = [search(served, query=query)["results"][0] for query in queries]
    with ThreadPoolExecutor(len(queries)) as pool:
        concurrent = list(pool.map(lambda query: search(served, query=query)["results"][0], queries))
    for one, other in zip(serial, concurrent, strict=True):
        assert one["reasoning"] == other["reasoning"]
        assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in other["items"]]
        scores = [[item["score"] for item in result["items"]] for result in (one, other)]
        np.testing.assert_allclose(*scores, atol=1e-5)


def test_the_histograms_add_the_timings_of_the_response(served: Served) -> None:
    sums = [f'lrem_phase_seconds_sum{{phase="{phase}"}}' for phase in ("route", "reason", "embed", "search")]
    before = [metric_value(served, series) for series in sums]
    timings = search(served, query="how long does this one take")["timings_ms"]
    added = [1000 * (metric_value(served, series) - value) for series, value in zip(sums, before, strict=True)]
    assert added == pytest.approx([timings[phase] for phase in ("route", "reason", "embed", "search")], abs=0.02)


def test_models_health_search_page_and_docs(served: Served) -> None:
    models = openai_client(served).models.list()
    assert [model.id for model in models.data] == [served.index.model, "lrem", "lrem-query", "lrem-item"]
    assert openai_client(served).models.retrieve("lrem-item").id == "lrem-item"
    assert_error(served.http.get("/v1/models/gpt"), 404, "'gpt' is not served here: send one of")
    for path in ("/healthz", "/readyz", "/"):
        head = served.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
    assert served.http.get("/healthz").json() == {"status": "ok", "model": served.index.model}
    page = served.http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert '<form id="form" role="search">' in page.text
    assert "tea &amp; &lt;pot&gt;" in page.text  # serve.examples, as text
    assert "innerHTML" not in page.text
    assert "http" not in page.text.replace("httpx", ""), "the page must not load anything from elsewhere"
    assert served.http.get("/docs").status_code == 200
    assert "/v1/search" in served.http.get("/openapi.json").json()["paths"]


def test_readyz_names_nothing_missing(served: Served) -> None:
    assert served.http.get("/readyz").json() == {"ready": True, "missing": []}
