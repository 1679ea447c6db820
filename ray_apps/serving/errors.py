"""The one shape of every error that the service answers with: what went wrong, and what to do.

Knows pydantic and FastAPI; does not know what the requests are about.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException


class ErrorDetail(BaseModel):
    """What went wrong and what to do; `code` is for programs."""

    message: str
    type: str
    code: str


class ErrorAnswer(BaseModel):
    """The one shape of every error, as OpenAI's."""

    error: ErrorDetail


KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error", 504: "timeout_error"}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The body cannot be read",
        401: "No key was sent, or an unknown one",
        403: "The key may not do this",
        404: "The model is not served, or the item is not there",
        408: "The body did not come in time",
        413: "The body is too long",
        415: "The body is of another kind",
        422: "A field is missing, unknown or out of bounds",
        429: "Too many requests are under way; Retry-After says when to come back",
        503: "A part of the application is down",
        504: "A phase took too long",
    }.items()
}


class ServiceError(Exception):
    """An error that a caller should read: HTTP status, message, machine-readable code, seconds to wait."""

    def __init__(self, status: int, message: str, code: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after_s = status, code, retry_after_s


def error_answer(status: int, message: str, code: str, retry_after_s: int | None = None) -> JSONResponse:
    """The one error shape; half a surrogate pair in a message (from an unknown field's name) becomes `?`."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    detail = ErrorDetail(message=message.encode(errors="replace").decode(), type=kind, code=code)
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(ErrorAnswer(error=detail).model_dump(), status, headers)


def install_errors(app: FastAPI) -> None:
    """Make every error of `app` leave in the one shape."""

    @app.exception_handler(ServiceError)
    def service(request: Request, error: ServiceError) -> JSONResponse:
        return error_answer(error.status, str(error), error.code, error.retry_after_s)

    @app.exception_handler(RequestValidationError)
    def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        if problems[0]["type"] == "json_invalid":
            return error_answer(400, f"the body is not JSON ({problems[0]['ctx']['error']})", "invalid_json")
        message = "; ".join(explain(problem) for problem in problems[:5])
        return error_answer(422, message, "invalid_request")

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}; the endpoints are listed at /docs"
        return error_answer(error.status_code, message, f"http_{error.status_code}")

    @app.exception_handler(Exception)
    def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return error_answer(500, "the request failed inside the server: its log says why, try again", "internal")


def explain(problem: dict[str, Any], skipped: int = 1) -> str:
    """One of pydantic's errors as a line; the first `skipped` parts of the place are not said."""
    place = ".".join(str(part) for part in problem["loc"][skipped:])
    if problem["type"] == "extra_forbidden":
        return f"{place}: no such field, remove it or see /docs for the fields there are"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
