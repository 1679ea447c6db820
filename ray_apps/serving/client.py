"""HTTP client of the service, for the command line, the demo and the evaluation."""

import json
from typing import Any

import httpx
from rich.table import Table
from rich.text import Text

from lrem.errors import DataError
from ray_apps.cluster.progress import console
from ray_apps.cluster.proxies import open_client

TIMEOUT_S = 65.0  # longer than the server's own, whose message names the late phase


def search(
    url: str, query: str, k: int, reason: str, where: str | None = None, key: str | None = None
) -> dict[str, Any]:
    """Send `POST /v1/search` for one query and return its JSON.

    Args:
        url: address of the service.
        query: the text.
        k: number of items.
        reason: `auto`, `always` or `never`.
        where: a filter as JSON.
        key: a bearer key.

    Raises:
        ConnectionError: nothing answers at `url`, or it answers with an error, which the message quotes.
        DataError: the filter is not JSON.
    """
    body: dict[str, Any] = {"query": query, "k": k, "reason": reason}
    if (parsed := parse_filter(where)) is not None:
        body["filter"] = parsed
    with open_client(httpx.Client, url) as http:
        return post_search(http, url, body, key)


def post_search(http: httpx.Client, url: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """Return the JSON that `POST /v1/search` answers. Raises ConnectionError as `search`."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        response = http.post(f"{url.rstrip('/')}/v1/search", json=body, timeout=TIMEOUT_S, headers=headers)
    except httpx.TimeoutException as error:
        raise ConnectionError(f"{url} did not answer within {TIMEOUT_S:.0f} s: see the log of `lrem serve`") from error
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise ConnectionError(f"no answer from {url} ({error}): start it with `lrem serve`, or pass --url") from error
    if response.status_code != 200 or "results" not in response.text:
        raise ConnectionError(f"{url} answered {response.status_code}: {response.text[:500]}")
    return dict(response.json())


def parse_filter(text: str | None) -> Any:
    """Return the filter that a JSON text holds, None for None. Raises DataError if it is not JSON."""
    if text is None:
        return None
    try:
        where = json.loads(text)
        json.dumps(where, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        raise DataError(f'the filter is not JSON ({error}): write it like \'{{"price": {{"$lt": 20}}}}\'') from error
    return where


def print_results(response: dict[str, Any]) -> None:
    """Print the reasoning and the items of a search response."""
    for result in response["results"]:
        console.print(f"{result['query']}  →  {result['reasoning'] or '(no thought)'}", markup=False, emoji=False)
        grid = Table("score", "item", "title")
        for item in result["items"]:
            title = str(item["payload"].get("title", ""))
            grid.add_row(f"{item['score']:.3f}", Text(item["item_id"]), Text(title))
        console.print(grid)
    console.print(", ".join(f"{phase} {ms:.0f} ms" for phase, ms in response["timings_ms"].items()), highlight=False)
