"""A small HTTP client of the serving application, for the command line and the demo."""

import json
from typing import Any

import httpx
from rich.table import Table
from rich.text import Text

from lrem.errors import DataError
from ray_apps.cluster.progress import console

TIMEOUT_S = 65.0  # longer than the server's own: its answer says which phase was late


def search(
    url: str, query: str, k: int, reason: str, where: str | None = None, key: str | None = None
) -> dict[str, Any]:
    """POST /v1/search for one query; returns its JSON.

    Args:
        where: a filter as JSON.
        key: a bearer key.

    Raises:
        ConnectionError: nobody answers at `url`, or the answer is an error; the message says which.
        DataError: the filter is no JSON.
    """
    body: dict[str, Any] = {"query": query, "k": k, "reason": reason}
    if (wanted := parse_filter(where)) is not None:
        body["filter"] = wanted
    with httpx.Client() as http:
        return post_search(http, url, body, key)


def post_search(http: httpx.Client, url: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """The JSON that `POST /v1/search` answers. Raises ConnectionError, as `search`."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        answer = http.post(f"{url.rstrip('/')}/v1/search", json=body, timeout=TIMEOUT_S, headers=headers)
    except httpx.TimeoutException as error:
        raise ConnectionError(f"{url} did not answer within {TIMEOUT_S:.0f} s: see the log of `lrem serve`") from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ConnectionError(f"no answer from {url} ({error}): start it with `lrem serve`, or pass --url") from error
    if answer.status_code != 200 or "results" not in answer.text:
        raise ConnectionError(f"{url} answered {answer.status_code}: {answer.text[:500]}")
    return dict(answer.json())


def parse_filter(text: str | None) -> Any:
    """A filter as it was typed. Raises DataError where it is no JSON."""
    if text is None:
        return None
    try:
        found = json.loads(text)
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise DataError(f'the filter is not JSON ({error}): write it like \'{{"price": {{"$lt": 20}}}}\'') from error
    return found


def show(answer: dict[str, Any]) -> None:
    """Print the reasoning and the items of an answer."""
    for result in answer["results"]:
        console.print(f"{result['query']}  →  {result['reasoning'] or '(no thought)'}", markup=False, emoji=False)
        grid = Table("score", "item", "title")
        for item in result["items"]:
            title = str(item["payload"].get("title", ""))
            grid.add_row(f"{item['score']:.3f}", Text(item["item_id"]), Text(title))
        console.print(grid)
    console.print(", ".join(f"{phase} {ms:.0f} ms" for phase, ms in answer["timings_ms"].items()), highlight=False)
