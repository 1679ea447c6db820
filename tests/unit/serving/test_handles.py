"""The handles' types are those of the deployments' methods, and every deployment can be pinged."""

import inspect
from typing import Any, get_args, get_type_hints

import pytest

from ray_apps.serving.embedder import Embedder
from ray_apps.serving.handles import EmbedderHandle, IndexShardHandle, ReasonerHandle
from ray_apps.serving.index_shard import IndexShard
from ray_apps.serving.reasoner import Reasoner

PAIRS = [(ReasonerHandle, Reasoner), (EmbedderHandle, Embedder), (IndexShardHandle, IndexShard)]
METHODS = [
    pytest.param(deployment, name, hint, id=f"{deployment.__name__}.{name}")
    for handle, deployment in PAIRS
    for name, hint in get_type_hints(handle).items()
]


@pytest.mark.parametrize(("deployment", "name", "hint"), METHODS)
def test_a_handle_has_the_types_of_its_deployment(deployment: type, name: str, hint: Any) -> None:
    method = getattr(deployment, name)
    arguments, result = get_args(hint)
    hints = get_type_hints(method)
    assert hints.pop("return") == result
    assert list(hints.values()) == list(arguments)
    assert inspect.iscoroutinefunction(method)


@pytest.mark.parametrize(("handle", "deployment"), PAIRS)
def test_every_deployment_answers_a_ping(handle: type, deployment: type) -> None:
    assert "ping" in get_type_hints(handle)
    assert list(inspect.signature(deployment.ping).parameters) == ["self"]
