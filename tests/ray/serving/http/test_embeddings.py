"""The embeddings endpoint, through OpenAI's own client, equals the model in this process."""

import base64
from functools import partial
from typing import Any

import numpy as np
import pytest

from tests.serving import QUERIES, TITLES, Served, openai_client, search, shorten


def vectors_of(response: Any) -> np.ndarray:
    """Return the vectors; the client decodes base64 only if the caller did not request an encoding."""
    rows = [row.embedding for row in response.data]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), "<f4") for row in rows])
    return np.array(rows)


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_embeddings_equal_those_of_the_model(served: Served, encoding: Any) -> None:
    create = partial(openai_client(served).embeddings.create, model="lrem", **encoding)
    items = create(input=TITLES[:5], extra_body={"input_type": "item"})
    np.testing.assert_allclose(vectors_of(items), served.embedder.encode_items(TITLES[:5]), atol=1e-4)
    as_queries = create(input=TITLES[:5], extra_body={"reason": "never"})
    assert np.abs(vectors_of(as_queries) - vectors_of(items)).max() > 0.01
    direct = create(input=QUERIES[0], extra_body={"reason": "never"})
    expected = served.embedder.encode_queries(QUERIES[:1], [""])
    np.testing.assert_allclose(vectors_of(direct), expected, atol=1e-4)
    assert [row.index for row in items.data] == [0, 1, 2, 3, 4]
    renderer = served.embedder.renderer
    assert items.usage.total_tokens == sum(len(renderer.item_ids(title)) for title in TITLES[:5])
    assert direct.usage.prompt_tokens == direct.usage.total_tokens == len(renderer.query_ids(QUERIES[0], ""))


def test_an_alias_says_what_the_inputs_are(served: Served) -> None:
    """LangChain and others know one model name and nothing else."""
    create = openai_client(served).embeddings.create
    items = create(model="lrem-item", input=TITLES[:5], encoding_format="float")
    np.testing.assert_allclose(vectors_of(items), served.embedder.encode_items(TITLES[:5]), atol=1e-4)
    nulls = {"input_type": None, "reason": None, "user": None, "dimensions": None, "encoding_format": None}
    body = {"model": "lrem-query", "input": QUERIES[0]}
    answers = [served.http.post("/v1/embeddings", json=one).json() for one in (body, body | nulls)]
    assert answers[0]["data"] == answers[1]["data"]


def test_embeddings_think_by_default(served: Served) -> None:
    response = openai_client(served).embeddings.create(model=served.index.model, input=QUERIES)
    reasonings = [result["reasoning"] for result in search(served, queries=QUERIES, k=1)["results"]]
    expected = served.embedder.encode_queries(QUERIES, reasonings)
    np.testing.assert_allclose([row.embedding for row in response.data], expected, atol=1e-4)
    renderer = served.embedder.renderer
    total = sum(len(renderer.query_ids(*pair)) for pair in zip(QUERIES, reasonings, strict=True))
    assert response.usage.total_tokens == total > response.usage.prompt_tokens


def test_shorter_embeddings(served: Served) -> None:
    create = openai_client(served).embeddings.create
    items = create(model="lrem", input=TITLES[:5], dimensions=16, extra_body={"input_type": "item"})
    np.testing.assert_allclose(vectors_of(items), shorten(served.embedder.encode_items(TITLES[:5]), 16), atol=1e-4)


def test_token_ids_equal_their_text(served: Served) -> None:
    rows = [served.embedder.tokenizer.encode(f" {query}", add_special_tokens=False) for query in QUERIES]
    create = partial(openai_client(served).embeddings.create, model="lrem", extra_body={"reason": "never"})
    np.testing.assert_allclose(vectors_of(create(input=rows)), vectors_of(create(input=QUERIES)), atol=1e-5)
    np.testing.assert_allclose(vectors_of(create(input=rows[0])), vectors_of(create(input=QUERIES[0])), atol=1e-5)
