"""Bodies of requests: null is the default of every optional field, in the checks and in the OpenAPI schema."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ray_apps.serving.request_body import RequestBody
from ray_apps.serving.schema import CountRequest, EmbeddingsRequest, SearchRequest

BODIES: list[tuple[type[RequestBody], st.SearchStrategy[dict[str, Any]]]] = [
    (
        SearchRequest,
        st.fixed_dictionaries(
            {"query": st.just("tea")},
            optional={
                "k": st.integers(1, 1000),
                "reason": st.sampled_from(["auto", "always", "never"]),
                "reasonings": st.integers(1, 16),
                "complete": st.booleans(),
                "filter": st.just({"price": 3}),
            },
        ),
    ),
    (
        EmbeddingsRequest,
        st.fixed_dictionaries(
            {"input": st.just(["tea"])},
            optional={
                "model": st.sampled_from(["lrem", "lrem-item"]),
                "encoding_format": st.sampled_from(["float", "base64"]),
                "user": st.text(max_size=3),
            },
        ),
    ),
    (CountRequest, st.fixed_dictionaries({}, optional={"filter": st.just({"brand": "acme"})})),
]


@pytest.mark.parametrize(("kind", "bodies"), BODIES, ids=lambda part: getattr(part, "__name__", ""))
@given(data=st.data())
def test_a_body_with_nulls_equals_the_body_without(
    kind: type[RequestBody], bodies: st.SearchStrategy[dict[str, Any]], data: st.DataObject
) -> None:
    body = data.draw(bodies)
    nulls = dict.fromkeys(name for name, field in kind.model_fields.items() if not field.is_required())
    assert kind.model_validate(nulls | body) == kind.model_validate(body)
    properties = kind.model_json_schema()["properties"]
    assert all({"type": "null"} in properties[name]["anyOf"] for name in nulls)


def test_null_is_no_value_of_a_required_or_unknown_field() -> None:
    for body in ({"input": None}, {"input": "tea", "inputs": None}):
        with pytest.raises(ValidationError):
            EmbeddingsRequest.model_validate(body)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "query"),
        ({"model": "lrem"}, "query"),
        ({"model": "lrem", "input_type": "item"}, "item"),
        ({"model": "lrem-item"}, "item"),
        ({"model": "lrem-item", "input_type": "item"}, "item"),
        ({"model": "lrem-query"}, "query"),
        ({"model": "0123abcd", "input_type": "item"}, "item"),
    ],
)
def test_the_model_may_say_what_the_inputs_are(fields: dict[str, str], kind: str) -> None:
    assert EmbeddingsRequest.model_validate({"input": "tea"} | fields).kind == kind


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValidationError, match="'query' contradicts the model 'lrem-item'"):
        EmbeddingsRequest.model_validate({"input": "tea", "model": "lrem-item", "input_type": "query"})
    with pytest.raises(ValidationError, match="without thinking"):
        EmbeddingsRequest.model_validate({"input": "tea", "model": "lrem-item", "reason": "always"})
