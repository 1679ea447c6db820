"""Thinking: several reasonings, the decision whether to think, and the cache of queries."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from ray.serve import get_deployment_handle

from lrem.config import Config
from lrem.modeling.sequences import pad
from ray_apps.serving import deploy, live_record
from tests.serving import QUERIES, Served, assert_same_items, metric_value, search


def test_several_reasonings_are_averaged(served: Served) -> None:
    response = search(served, queries=QUERIES, reasonings=3, k=49)
    for query, result in zip(QUERIES, response["results"], strict=True):
        reasonings = result["reasonings"]
        assert (len(reasonings), reasonings[0]) == (3, result["reasoning"])
        assert len(set(reasonings)) > 1
        mean = served.embedder.encode_queries([query] * 3, reasonings).mean(axis=0)
        [expected] = served.index.search(mean[None] / np.linalg.norm(mean), 49)
        assert_same_items(result["items"], expected)


def test_the_probability_of_an_empty_thought_is_the_models(served: Served) -> None:
    record = live_record.read()
    assert record is not None
    reasoner = get_deployment_handle("Reasoner", record.application)
    renderer = served.embedder.renderer
    batch = pad([[*renderer.query_prompt(query), renderer.think] for query in QUERIES])
    with torch.no_grad():
        logits = served.embedder.lm(batch.ids).logits[torch.arange(len(QUERIES)), batch.lengths - 1]
    expected = logits.softmax(-1)[:, renderer.close].tolist()
    probabilities = reasoner.empty_reasoning_probabilities.remote(QUERIES).result(timeout_s=60)
    assert probabilities == pytest.approx(expected, rel=1e-3)


def test_a_repeated_query_comes_from_the_cache(served: Served) -> None:
    first = search(served, query="a  never  seen query")
    repeated = search(served, query=" a never seen query ")
    assert first["timings_ms"]["reason"] > 0
    assert repeated["timings_ms"]["reason"] == repeated["timings_ms"]["embed"] == 0
    assert repeated["results"][0]["items"] == first["results"][0]["items"]
    assert metric_value(served, 'lrem_cache_queries_total{found="yes"}') >= 1
    assert metric_value(served, 'lrem_phase_seconds_count{phase="search"}') >= 2
    assert metric_value(served, 'lrem_requests_total{path="/v1/search",status="200"}') >= 2


@pytest.fixture
def think_below(served: Served, world: Config) -> Iterator[float]:
    """A `serve.think_below` with which the model thinks about some of QUERIES, and not about others."""
    probabilities = sorted(served.embedder.empty_reasoning_probabilities(QUERIES))
    low, high = max(pairwise(probabilities), key=lambda pair: pair[1] / pair[0])
    assert high > 1.01 * low  # vLLM's probabilities agree to a thousandth
    changed = world.serve.model_copy(update={"think_below": (low + high) / 2})
    deploy.start(world.model_copy(update={"serve": changed}))
    yield changed.think_below
    deploy.start(world)


def test_auto_thinks_if_an_empty_thought_is_improbable(served: Served, think_below: float) -> None:
    auto, never, always = (
        search(served, queries=QUERIES, k=12, reason=reason)["results"] for reason in ("auto", "never", "always")
    )
    thinks = [empty < think_below for empty in served.embedder.empty_reasoning_probabilities(QUERIES)]
    assert set(thinks) == {True, False}
    for result, think, direct, thoughtful in zip(auto, thinks, never, always, strict=True):
        assert result["reasoning"] == (thoughtful["reasoning"] if think else None)
        expected = (thoughtful if think else direct)["items"]
        assert [item["item_id"] for item in result["items"]] == [item["item_id"] for item in expected]
        scores = [[item["score"] for item in items] for items in (result["items"], expected)]
        np.testing.assert_allclose(*scores, atol=1e-5)
    several = search(served, queries=QUERIES, k=12, reasonings=2)["results"]
    assert [result["reasoning"] is not None for result in several] == thinks
