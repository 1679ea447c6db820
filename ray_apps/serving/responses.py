"""HTTP shapes of the ingress: search results, embeddings, lines of a bulk write, the search page."""

import base64
import html
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fastapi import Response
from pydantic import BaseModel, ValidationError

from lrem.index import Hit
from ray_apps.serving import schema
from ray_apps.serving.errors import describe_problem, invalid_request
from ray_apps.serving.query_path import EncodedQuery

PAGE = Path(__file__).parent / "static" / "index.html"


def search_result(text: str, query: EncodedQuery, hits: list[Hit]) -> schema.SearchResult:
    """Return the result of one query; `reasonings` only if there are several."""
    reasonings = query.reasonings
    return schema.SearchResult(
        query=text,
        reasoning=reasonings and reasonings[0],
        reasonings=reasonings if reasonings is not None and len(reasonings) > 1 else None,
        items=[schema.SearchItem(item_id=hit.item_id, score=hit.score, payload=hit.payload) for hit in hits],
    )


def json_response(body: BaseModel) -> Response:
    """Return a response without FastAPI's second validation of `body`."""
    return Response(body.model_dump_json(), media_type="application/json")


def encode_vector(vector: np.ndarray, encoding: str) -> list[float] | str:
    """Return a vector [H] as floats (`float`), or as base64 of little-endian float32 (`base64`)."""
    if encoding == "float":
        return [float(x) for x in vector]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def search_page(examples: list[str]) -> str:
    """Return the HTML of the search page with buttons for example queries."""
    buttons = (f'<li><button type="button">{html.escape(query)}</button></li>' for query in examples)
    return PAGE.read_text(encoding="utf-8").replace("<!-- examples -->", "\n    ".join(buttons))


class ParsedLine(NamedTuple):
    """A line of a bulk write: its outcome, and its item; None if the line is invalid."""

    outcome: schema.BulkLine
    item: schema.ItemInput | None


def parse_bulk(body: bytes) -> list[ParsedLine]:
    """Return the lines of a bulk write that are not blank, those that are invalid with their error.

    Raises:
        ServiceError: 422, there is no line, or more than schema.MAX_ITEMS.
    """
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if not 1 <= len(lines) <= schema.MAX_ITEMS:
        message = f"the body has {len(lines)} lines: send 1 to {schema.MAX_ITEMS}, one JSON object per line"
        raise invalid_request(message)
    return [_parse_line(number, line) for number, line in lines]


def _parse_line(number: int, line: bytes) -> ParsedLine:
    try:
        item = schema.ItemInput.model_validate(json.loads(line))
    except ValidationError as error:
        message = "; ".join(describe_problem(dict(problem), 0) for problem in error.errors()[:3])
        return ParsedLine(schema.BulkLine(line=number, error=message), None)
    except (ValueError, RecursionError) as error:
        return ParsedLine(schema.BulkLine(line=number, error=f"not valid JSON: {error}"), None)
    return ParsedLine(schema.BulkLine(line=number, item_id=item.item_id), item)
