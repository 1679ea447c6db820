"""A running service as a system of the evaluation: the same queries over HTTP, one a request as shoppers send them."""

import os
import time
from typing import Any

import httpx

from lrem.config import Config
from lrem.errors import DataError
from lrem.evaluation.assembly import Outcome
from ray_apps.evaluation.systems import Asked, share_of_thoughts
from ray_apps.serving.client import post_search
from ray_apps.serving.schema import MAX_K


def search_all(config: Config, url: str, asked: Asked, mode: str) -> tuple[Outcome, dict[str, str]]:
    """Ask every query, one after another; returns what was found and query_id → reasoning.

    The service keeps thoughts and vectors for a while (`serve.cache_ttl_s`): asked a second time it is faster.

    Raises:
        DataError: runs are deeper than the service answers.
        ConnectionError: the service does not answer, answers with an error, or degraded.
    """
    if asked.depth > MAX_K:
        raise DataError(f"a service answers {MAX_K} items at most, {asked.depth} are needed: lower evaluate.k")
    key = os.environ.get(config.evaluate.key_variable)
    rankings: list[list[tuple[str, float]]] = []
    said: dict[str, str] = {}
    with httpx.Client() as http:
        begun = time.monotonic()
        for query_id, text in zip(asked.ids, asked.texts, strict=True):
            body = {"query": text, "k": asked.depth, "reason": mode, "complete": True}
            answer = post_search(http, url, body, key)
            if answer["degraded"]:
                raise ConnectionError(f"{url} answered '{text}' without thinking: its reasoner is down or late")
            result: dict[str, Any] = answer["results"][0]
            rankings.append([(item["item_id"], item["score"]) for item in result["items"]])
            said[query_id] = result["reasoning"] or ""
        seconds = time.monotonic() - begun
    return Outcome(asked.run(rankings), seconds, share_of_thoughts(list(said.values()))), said
