"""A running service as a system of the evaluation: one HTTP request per query, as shoppers send them."""

import os
from typing import Any, NamedTuple

import httpx

from lrem.config import Config
from lrem.errors import DataError
from lrem.evaluation.system_run import SystemRun, reasoned_share, timed
from ray_apps.cluster.proxies import open_client
from ray_apps.evaluation.query_set import QuerySet
from ray_apps.serving.client import post_search
from ray_apps.serving.schema import MAX_K


class ServiceResult(NamedTuple):
    """The run of a service in one mode, and query_id → reasoning."""

    run: SystemRun
    reasonings: dict[str, str]


def service_run(config: Config, url: str, queries: QuerySet, mode: str) -> ServiceResult:
    """Send every query to the service at `url`, one after the other.

    The service caches reasonings and vectors (`serve.cache_ttl_s`), so a repeated evaluation is faster.

    Args:
        mode: the request's `reason`: never, auto or always.

    Raises:
        DataError: the runs have to be deeper than the service allows.
        ConnectionError: the service does not answer, answers with an error, or answers without its reasoner.
    """
    if queries.depth > MAX_K:
        raise DataError(f"a service returns at most {MAX_K} items, but {queries.depth} are needed: lower evaluate.k")
    with open_client(httpx.Client, url) as http:
        results, seconds = timed(lambda: [_send(config, http, url, queries, text, mode) for text in queries.texts])
    rankings = [[(item["item_id"], item["score"]) for item in result["items"]] for result in results]
    reasonings = [result["reasoning"] or "" for result in results]
    run = SystemRun(queries.run(rankings), seconds, reasoned_share(reasonings))
    return ServiceResult(run, dict(zip(queries.ids, reasonings, strict=True)))


def _send(config: Config, http: httpx.Client, url: str, queries: QuerySet, text: str, mode: str) -> dict[str, Any]:
    body = {"query": text, "k": queries.depth, "reason": mode, "complete": True}
    response = post_search(http, url, body, os.environ.get(config.evaluate.key_variable))
    if response["degraded"]:
        raise ConnectionError(
            f"{url} answered '{text}' without a reasoning, because its reasoner is down or late: see `lrem status`, "
            "then evaluate again"
        )
    result: dict[str, Any] = response["results"][0]
    return result
