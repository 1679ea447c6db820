"""A small HTTP client of the serving application, for the command line and the demo."""

from typing import Any

import httpx
from rich.table import Table

from ray_apps.progress import console

TIMEOUT_S = 60.0


def search(url: str, query: str, k: int, reason: str) -> dict[str, Any]:
    """POST /v1/search for one query; returns its JSON.

    Raises:
        ConnectionError: nobody answers at `url`, or the answer is an error; the message says which.
    """
    try:
        answer = httpx.post(f"{url}/v1/search", json={"query": query, "k": k, "reason": reason}, timeout=TIMEOUT_S)
    except httpx.TransportError as error:
        raise ConnectionError(f"no answer from {url} ({error}): start it with `lrem serve`, or pass --url") from error
    if answer.status_code != 200:
        raise ConnectionError(f"{url} answered {answer.status_code}: {answer.text}")
    return dict(answer.json())


def show(answer: dict[str, Any]) -> None:
    """Print the reasoning and the items of an answer."""
    for result in answer["results"]:
        console.print(f"[bold]{result['query']}[/bold]  thinks: {result['reasoning'] or '(nothing)'}", highlight=False)
        grid = Table("score", "item", "title")
        for item in result["items"]:
            grid.add_row(f"{item['score']:.3f}", item["item_id"], item["payload"]["title"])
        console.print(grid)
    console.print(", ".join(f"{phase} {ms:.0f} ms" for phase, ms in answer["timings_ms"].items()), highlight=False)
