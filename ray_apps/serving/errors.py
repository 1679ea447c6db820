"""Errors of the service: one JSON shape for all of them, OpenAI's, with a message that says what to do."""

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from lrem.errors import FilterError, LremError
from lrem.index.filters import require_comparable


class ErrorDetail(BaseModel):
    """What went wrong and what to do; `code` is for programs."""

    message: str
    type: str
    code: str


class ErrorResponse(BaseModel):
    """The one shape of every error, as OpenAI's."""

    error: ErrorDetail


# pydantic's error types, whose messages speak of Python's types
JSON_TYPES = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a JSON object"),
    "list_type": "a list",
    "string_type": "a string",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
}
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
DOCUMENTED_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        400: "The body cannot be read",
        401: "No key was sent, or an unknown one",
        403: "The key does not allow this",
        404: "The model is not served, or the item does not exist",
        408: "The body did not arrive in time",
        413: "The body is too large",
        415: "The content type is not supported",
        422: "A field is missing, unknown or out of bounds",
        429: "Too many requests are in progress; Retry-After says when to retry",
        503: "A part of the application is down",
        504: "A phase took too long",
    }.items()
}


class ServiceError(LremError):
    """An error for the caller to read: HTTP status, message, machine-readable code, seconds until a retry."""

    def __init__(self, status: int, message: str, code: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s


def invalid_request(message: str) -> ServiceError:
    """Return a 422: a field has a value that the service cannot accept."""
    return ServiceError(422, message, "invalid_request")


def refuse_incomparable(where: Mapping[str, Any] | None, kinds: Iterable[Mapping[str, set[str]]]) -> None:
    """Check a filter against what all shards hold of its fields.

    Args:
        where: the filter.
        kinds: of each shard that answered, field → kinds of its values.

    Raises:
        ServiceError: 422, a condition could match nothing.
    """
    if where is None:
        return
    united: dict[str, set[str]] = {}
    for one in kinds:
        for field, values in one.items():
            united.setdefault(field, set()).update(values)
    try:
        require_comparable(where, united)
    except FilterError as error:
        raise invalid_request(str(error)) from error


def too_many_requests() -> ServiceError:
    """Return a 429: more requests are in progress than the service accepts."""
    return ServiceError(429, "too many requests are in progress: wait a second, send fewer at once", "busy", 1)


def unavailable(reason: str) -> ServiceError:
    """Return a 503 that advises to retry the request."""
    return ServiceError(503, f"{reason}: retry the request; writes are idempotent", "unavailable", 1)


def error_response(status: int, message: str, code: str, retry_after_s: int | None = None) -> JSONResponse:
    """Return the one error shape; an unpaired surrogate in a message (from an unknown field's name) becomes `?`."""
    error_type = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    detail = ErrorDetail(message=message.encode(errors="replace").decode(), type=error_type, code=code)
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(ErrorResponse(error=detail).model_dump(), status, headers)


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of `app` in the one shape."""

    @app.exception_handler(ServiceError)
    def service(request: Request, error: ServiceError) -> JSONResponse:
        return error_response(error.status, str(error), error.code, error.retry_after_s)

    @app.exception_handler(RequestValidationError)
    def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        if problems[0]["type"] == "json_invalid":
            return error_response(400, f"the body is not JSON ({problems[0]['ctx']['error']})", "invalid_json")
        message = "; ".join(describe_problem(problem) for problem in problems[:5])
        return error_response(422, message, "invalid_request")

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI, of a body that it cannot decode
            return error_response(400, "the body is not JSON in UTF-8", "invalid_json")
        message = f"{request.method} {request.url.path}: {error.detail}; the endpoints are listed at /docs"
        return error_response(error.status_code, message, f"http_{error.status_code}")

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, "the request failed inside the server: see its log, then try again", "internal")


def describe_problem(problem: dict[str, Any], skipped: int = 1) -> str:
    """Return one of pydantic's errors as a line: `place: message`, without the first `skipped` parts of the place."""
    place = ".".join(str(part) for part in problem["loc"][skipped:])
    if problem["type"] == "extra_forbidden":
        return f"{place}: no such field, remove it or see /docs for the fields there are"
    if problem["type"] in JSON_TYPES:
        return f"{place or 'the body'}: send {JSON_TYPES[problem['type']]}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
