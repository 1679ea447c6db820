"""The HTTP contract: requests with their limits, answers, and the one shape of every error.

Knows pydantic and FastAPI; does not know models, Ray or how an answer is found.
"""

import math
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException

from lrem.index.filters import Filter, FilterError, parse

MAX_QUERIES = 64  # of one search: the latency of all is that of the slowest
MAX_INPUTS = 2048  # of one embeddings request, as OpenAI's
MAX_CHARACTERS = 2000
MAX_K = 1000
ALIAS = "lrem"  # a name for whatever model is served, for clients that must send one

Reason = Literal["always", "never"]


def _check_text(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank: write at least one word")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters: send at most {MAX_CHARACTERS}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half a surrogate pair: send whole Unicode characters")
    return text


def _check_filter(given: dict[str, Any]) -> dict[str, Any]:
    try:
        parse(given)
    except FilterError as error:  # pydantic says itself that it is the filter
        raise ValueError(str(error).removeprefix("filter").lstrip(".: ")) from error
    return given


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_check_text)]
Texts = Annotated[
    list[Text],
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Field(min_length=1, max_length=MAX_INPUTS),
]


class Body(BaseModel):
    """A JSON object closed to unknown fields: a misspelt option must not be silently ignored."""

    model_config = ConfigDict(extra="forbid")


class SearchRequest(Body):
    """Body of `POST /v1/search`: one `query`, or up to 64 `queries`."""

    query: Text | None = None
    queries: Annotated[list[Text], Field(min_length=1, max_length=MAX_QUERIES)] | None = None
    k: int = Field(10, ge=1, le=MAX_K, description="Items for each query.")
    reason: Reason = Field("always", description="Whether to think before embedding.")
    filter: Annotated[dict[str, Any], AfterValidator(_check_filter)] | None = Field(
        None, description='Which items may be found, by their payload: `{"price": {"$lt": 20}}`, see docs/index.md.'
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "SearchRequest":
        if (self.query is None) == (self.queries is None):
            raise ValueError("send either 'query' (a string) or 'queries' (a list of strings)")
        return self

    @property
    def texts(self) -> list[str]:
        """The queries, whichever way they came."""
        return self.queries or [str(self.query)]

    @property
    def where(self) -> Filter | None:
        """The filter, read."""
        return None if self.filter is None else parse(self.filter)


class Item(BaseModel):
    """A found item: `score` is the cosine, `payload` the catalogue's other columns."""

    item_id: str
    score: float
    payload: dict[str, Any]


class Result(BaseModel):
    """The answer to one query, best item first; `reasoning` is null where none was asked for."""

    query: str
    reasoning: str | None
    items: list[Item]


class SearchAnswer(BaseModel):
    """`model` is the fingerprint; `timings_ms` holds reason, embed, search and total, in milliseconds."""

    model: str
    results: list[Result]
    timings_ms: dict[str, float]


class EmbeddingsRequest(Body):
    """Body of `POST /v1/embeddings`: OpenAI's, with `input_type` and `reason` beside it."""

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None
    input_type: Literal["query", "item"] = "query"
    reason: Reason | None = Field(None, description="For queries: 'always' unless given. Items are never reasoned.")

    @model_validator(mode="after")
    def _items_do_not_reason(self) -> "EmbeddingsRequest":
        if self.input_type == "item" and self.reason == "always":
            raise ValueError("reason: items are embedded without thinking, leave 'reason' out or send 'never'")
        return self


class Embedding(BaseModel):
    """One vector: floats, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Token ids: `prompt_tokens` of the rendered inputs, `total_tokens` with what the model thought."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """OpenAI's list of embeddings, in the order of the input."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """A served model: the id is the fingerprint, `created` the start of the application (Unix seconds)."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = ALIAS


class Models(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """What a load balancer asks for."""

    status: Literal["ok"] = "ok"
    model: str


class ErrorDetail(BaseModel):
    """What went wrong and what to do; `code` is for programs."""

    message: str
    type: str
    code: str


class ErrorAnswer(BaseModel):
    """The one shape of every error, as OpenAI's."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The body cannot be read",
        404: "The model is not served",
        422: "A field is missing, unknown or out of bounds",
        504: "A phase took too long",
    }.items()
}


class ServiceError(Exception):
    """An error that a caller should read: HTTP status, message and machine-readable code."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def error_answer(status: int, message: str, code: str) -> JSONResponse:
    """The one error shape; half a surrogate pair in a message (from an unknown field's name) becomes `?`."""
    kind = "timeout_error" if status == 504 else "server_error" if status >= 500 else "invalid_request_error"
    detail = ErrorDetail(message=message.encode(errors="replace").decode(), type=kind, code=code)
    return JSONResponse(ErrorAnswer(error=detail).model_dump(), status_code=status)


def install_errors(app: FastAPI) -> None:
    """Make every error of `app` leave in the one shape."""

    @app.exception_handler(ServiceError)
    def service(request: Request, error: ServiceError) -> JSONResponse:
        return error_answer(error.status, str(error), error.code)

    @app.exception_handler(RequestValidationError)
    def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        if problems[0]["type"] == "json_invalid":
            return error_answer(400, f"the body is not JSON ({problems[0]['ctx']['error']})", "invalid_json")
        message = "; ".join(_explain(problem) for problem in problems[:5])
        return error_answer(422, message, "invalid_request")

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}; the endpoints are listed at /docs"
        return error_answer(error.status_code, message, f"http_{error.status_code}")

    @app.exception_handler(Exception)
    def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return error_answer(500, "the request failed inside the server: its log says why, try again", "internal")


def _explain(problem: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in problem["loc"][1:])
    if problem["type"] == "extra_forbidden":
        return f"{place}: no such field, remove it or see /docs for the fields there are"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def plain(value: Any) -> Any:
    """A payload value as JSON can carry it: NaN and infinities become null, unknown types text.

    >>> from datetime import date
    >>> plain({"price": float("nan"), "tags": ["a", None], "since": date(2024, 5, 1)})
    {'price': None, 'tags': ['a', None], 'since': '2024-05-01'}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)
