"""Every invalid request gets an error of the one shape."""

import json
from typing import Any

import openai
import pytest

from tests.serving import Served, assert_error, openai_client

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
    ("/v1/search", {"query": "tea", "filter": {"price": {"$lt": "9"}}}, 422, "filter: price.$lt: a text given"),
    ("/v1/search", {"query": "tea", "filter": {"tags": {"$has": 1}}}, 422, "filter: tags.$has: no such operator"),
    ("/v1/search", {"query": "tea", "filter": {"n": 10**400}}, 422, "filter: n: whole numbers beyond 2^53"),
    ("/v1/search", {"query": "tea", "filter": "price < 9"}, 422, "filter: "),
    ("/v1/search", {"query": "tea", "\ud800": 3}, 422, "unicode"),
    ("/v1/search", {"query": "\ud800"}, 422, "query: contains an unpaired surrogate"),
    ("/v1/search", [], 422, "the body: send a JSON object"),
    ("/v1/search", {"query": "tea", "filter": []}, 422, "filter: send a JSON object"),
    ("/v1/search", {"queries": "tea"}, 422, "queries: send a list"),
    ("/v1/search", {"query": ["tea"]}, 422, "query: send a string"),
    ("/v1/embeddings", {"input": ""}, 422, "blank"),
    ("/v1/embeddings", {"input": ["tea", "coffee", " "]}, 422, "input.2: is blank"),
    ("/v1/embeddings", {"input": []}, 422, "1 to 2048"),
    ("/v1/embeddings", {"input": [["tea"]]}, 422, "token ids"),
    ("/v1/embeddings", {"input": [1, 999_999]}, 422, "token id 999999 is out of range"),
    ("/v1/embeddings", {"input": "tea", "dimensions": 17}, 422, "trained for (16, 32, 64)"),
    ("/v1/search", {"query": "tea", "dimensions": 17}, 422, "trained for (16, 32, 64)"),
    ("/v1/search", {"query": "tea", "reasonings": 17}, 422, "reasonings: "),
    ("/v1/embeddings", {"input": "tea", "encoding_format": "hex"}, 422, "'float' or 'base64'"),
    ("/v1/embeddings", {"input": "tea", "input_type": "item", "reason": "always"}, 422, "without thinking"),
    ("/v1/embeddings", {"input": "tea", "model": "gpt"}, 404, "'gpt' is not served"),
    ("/v1/nothing", {}, 404, "/docs"),
    ("/healthz", {}, 405, "/docs"),
]


@pytest.mark.parametrize(("path", "body", "status", "fact"), ERRORS)
def test_errors_have_one_shape(served: Served, path: str, body: Any, status: int, fact: str) -> None:
    content = json.dumps(body)  # escapes to ASCII, so that an unpaired surrogate reaches the service
    assert_error(served.http.post(path, content=content, headers=JSON), status, fact)


@pytest.mark.parametrize(
    ("headers", "content", "status", "fact"),
    [
        ({}, b'{"query": "tea"}', 415, "content-type '': send application/json"),
        ({"content-type": "text/plain"}, b'{"query": "tea"}', 415, "content-type 'text/plain'"),
        (JSON | {"content-encoding": "gzip"}, b"\x1f\x8b", 415, "content-encoding 'gzip': send the body uncompressed"),
        ({"content-type": "application/json; charset=latin-1"}, b'{"query": "t\xe9"}', 415, "charset 'latin-1'"),
        (JSON, b'{"query": "t\xe9"}', 400, "not JSON in UTF-8"),
    ],
)
def test_a_body_of_another_kind_is_named(
    served: Served, headers: dict[str, str], content: bytes, status: int, fact: str
) -> None:
    assert_error(served.http.post("/v1/search", content=content, headers=headers), status, fact)


def test_a_filter_that_could_match_nothing_is_refused(served: Served) -> None:
    for path, body in (("/v1/search", {"query": "tea"}), ("/v1/items/count", {})):
        response = served.http.post(path, json=body | {"filter": {"title": {"$lt": 9}}})
        assert_error(response, 422, "filter.title: its values are texts, and $lt compares numbers")
        assert served.http.post(path, json=body | {"filter": {"price": {"$lt": 9}}}).status_code == 200


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe{", b"[" * 100_000])
def test_a_body_that_is_not_json_is_refused(served: Served, content: bytes) -> None:
    response = served.http.post("/v1/search", content=content, headers=JSON)
    assert_error(response, response.status_code, "")
    assert 400 <= response.status_code < 500


def test_openais_client_raises_our_errors(served: Served) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="blank"):
        openai_client(served).embeddings.create(model="lrem", input=" ")
