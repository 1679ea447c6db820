"""Who gets in: keys and their scopes, the size of a body, the number of requests in progress."""

import asyncio
from typing import Any

import httpx
import openai
import pytest

from lrem.config import Config
from lrem.errors import ConfigError
from ray_apps.serving import deploy
from tests.ray.serving.operations.helpers import READ, WRITER
from tests.serving import Served, assert_error, openai_client, search


def test_keys_and_their_scopes(served: Served) -> None:
    body = {"query": "tea", "reason": "never"}
    item = {"items": [{"item_id": "x", "title": "x"}]}
    with httpx.Client(base_url=served.url, timeout=60) as anonymous:
        assert_error(anonymous.post("/v1/search", json=body), 401, "no key was sent")
        assert_error(anonymous.get("/metrics"), 401, "no key was sent")
        unknown = anonymous.post("/v1/search", json=body, headers={"authorization": "Bearer nonsense"})
        assert_error(unknown, 401, "not known")
        assert unknown.headers["www-authenticate"] == "Bearer"
        assert anonymous.get("/healthz").status_code == anonymous.get("/readyz").status_code == 200
        assert anonymous.get("/").status_code == anonymous.get("/docs").status_code == 200
        reader = {"authorization": f"Bearer {READ}"}
        assert anonymous.post("/v1/search", json=body, headers=reader).status_code == 200
        for response in (
            anonymous.put("/v1/items", json=item, headers=reader),
            anonymous.delete("/v1/items/x", headers=reader),
            anonymous.post("/v1/items/bulk", content="{}", headers=reader),
        ):
            assert_error(response, 403, "write")
    assert len(openai_client(served, READ).embeddings.create(model="lrem", input="tea").data) == 1
    with pytest.raises(openai.AuthenticationError):
        openai_client(served).embeddings.create(model="lrem", input="tea")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_refused(served: Served, chunked: bool) -> None:
    body = b'{"query": "' + b"a" * 600_000 + b'"}'
    content: Any = iter([body[:300_000], body[300_000:]]) if chunked else body
    response = served.http.post("/v1/search", content=content, headers={"content-type": "application/json"})
    assert_error(response, 413, "0.5 MiB")


def test_too_many_requests_get_429_with_retry_after(served: Served) -> None:
    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.url, timeout=90, headers=WRITER) as http:
            requests = (http.post("/v1/search", json={"query": f"burst {i}", "reasonings": 4}) for i in range(120))
            return list(await asyncio.gather(*requests))

    responses = asyncio.run(burst())
    codes = [response.status_code for response in responses]
    assert set(codes) == {200, 429}
    refused = responses[codes.index(429)]
    assert_error(refused, 429, "wait")
    assert refused.headers["retry-after"] == "1"
    assert search(served, query="after the burst")["results"][0]["items"]


def test_without_keys_only_loopback_addresses_are_served(world: Config) -> None:
    def config(**changes: Any) -> Config:
        return world.model_copy(update={"serve": world.serve.model_copy(update=changes)})

    with pytest.raises(ConfigError, match=r"serve\.host=0\.0\.0\.0 .*serve\.keys_file"):
        deploy.start(config(host="0.0.0.0", keys_file=None))
    short = world.run_dir / "short"
    short.write_text("read abc\n")
    with pytest.raises(ConfigError, match="short, line 1"):
        deploy.start(config(keys_file=short))
    with pytest.raises(ConfigError, match=r"serve\.index_nodes: 192\.0\.2\.200"):
        deploy.start(config(index_nodes=["192.0.2.200"], shards=3))
    assert httpx.get(deploy.base_url(world) + "/healthz").status_code == 200  # the running service is unaffected
