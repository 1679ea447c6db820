"""Admission of requests: the size of a body, the number of requests in progress, the scope of a bearer key."""

import asyncio
from collections.abc import AsyncIterator
from email.message import Message
from typing import Annotated, Protocol, cast

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from ray import serve
from starlette import types as asgi
from starlette.datastructures import Headers

from lrem.config import ServeConfig
from ray_apps.serving.auth import Scope, scope_of
from ray_apps.serving.errors import ServiceError, error_response, too_many_requests
from ray_apps.serving.metrics import ServingMetrics

CLIENT_CLOSED = 499  # nginx's status for a client that did not wait for its response: not a failure of the service
BULK_PATH = "/v1/items/bulk"  # its route reads several types
UNLIMITED = ("/healthz", "/readyz", "/metrics")  # answered however many requests are in progress


class IngressState(Protocol):
    """What admission reads and counts in the ingress of this process (ingress.Ingress)."""

    settings: ServeConfig
    metrics: ServingMetrics
    keys: dict[str, Scope]
    in_progress: int


def _ingress() -> IngressState:
    return cast(IngressState, serve.get_replica_context().servable_object)


class BodyLimitMiddleware:
    """ASGI middleware: refuses a body that is too large before anything reads it whole, and counts the responses."""

    def __init__(self, app: asgi.ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Handle one request of the ASGI protocol."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        ingress, status = _ingress(), 0

        async def send_and_note(message: asgi.Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._handle(ingress.settings, scope, receive, send_and_note)
        except asyncio.CancelledError:
            status = status or CLIENT_CLOSED
            raise
        finally:
            route = scope.get("route")
            ingress.metrics.count_request(getattr(route, "path", "unknown"), status or 500)

    async def _handle(self, settings: ServeConfig, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if problem := _media_problem(scope):
            await error_response(415, problem, "media_type")(scope, receive, send)
            return
        limit = int(settings.max_body_mb * 2**20)
        try:
            async with asyncio.timeout(settings.timeout_s):
                messages = await _read_body(scope, receive, limit)
        except TimeoutError:
            message = f"the body did not arrive within {settings.timeout_s:g} s: send it again"
            await error_response(408, message, "slow_body")(scope, receive, send)
            return
        if messages is None:
            message = f"the body has more than {limit / 2**20:g} MiB: send less at once, or raise serve.max_body_mb"
            await error_response(413, message, "too_long")(scope, receive, send)
        else:
            await self.app(scope, _replay(messages, receive), send)


def _media_problem(scope: asgi.Scope) -> str | None:
    """Return why a body cannot be read as JSON by its headers; None if it can, or if the route reads other types."""
    if scope["method"] not in ("POST", "PUT") or not scope["path"].startswith("/v1/"):
        return None
    headers = Headers(scope=scope)
    if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
        return f"content-encoding '{encoding}': send the body uncompressed"
    declared = Message()
    declared["content-type"] = given = headers.get("content-type", "")
    charset = declared.get_content_charset("utf-8")
    if charset not in ("utf-8", "utf8", "us-ascii"):
        return f"charset '{charset}': send UTF-8"
    is_json = declared.get_content_maintype() == "application" and declared.get_content_subtype().endswith("json")
    if scope["path"] != BULK_PATH and not is_json:
        return f"content-type '{given}': send application/json"
    return None


async def _read_body(scope: asgi.Scope, receive: asgi.Receive, limit: int) -> list[asgi.Message] | None:
    """Return the messages of a body; None if it is, or announces to be, longer than `limit` bytes."""
    announced = dict(scope["headers"]).get(b"content-length", b"0")
    if announced.isdigit() and int(announced) > limit:
        return None
    messages, length = [], 0
    while True:
        message = await receive()
        messages.append(message)
        length += len(message.get("body", b""))
        if length > limit:
            return None
        if not message.get("more_body"):
            return messages


def _replay(messages: list[asgi.Message], receive: asgi.Receive) -> asgi.Receive:
    """Return a `receive` that gives messages that were read already, then new ones."""
    unread = iter(messages)

    async def replay() -> asgi.Message:
        return next(unread, None) or await receive()

    return replay


async def limit_requests(request: Request) -> AsyncIterator[None]:
    """Dependency of every route: at most `serve.max_requests` are in progress.

    Raises:
        ServiceError: 429, there are that many.
    """
    ingress = _ingress()
    if request.scope["route"].path in UNLIMITED:
        yield
        return
    if ingress.in_progress >= ingress.settings.max_requests:
        raise too_many_requests()
    ingress.in_progress += 1
    ingress.metrics.set_in_progress(ingress.in_progress)
    try:
        yield
    finally:
        ingress.in_progress -= 1
        ingress.metrics.set_in_progress(ingress.in_progress)


bearer = HTTPBearer(auto_error=False, description="A key of serve.keys_file; not needed if that is not set.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


async def require_reader(credentials: Credentials) -> None:
    """Dependency of routes that read. Raises ServiceError 401 without a known key."""
    _require(credentials, "read")


async def require_writer(credentials: Credentials) -> None:
    """Dependency of routes that write. Raises ServiceError 401 without a known key, 403 if it may only read."""
    _require(credentials, "write")


def _require(credentials: HTTPAuthorizationCredentials | None, required: Scope) -> None:
    keys = _ingress().keys
    if not keys:
        return
    if credentials is None:
        raise ServiceError(401, "no key was sent: add the header 'Authorization: Bearer KEY'", "no_key")
    scope = scope_of(keys, credentials.credentials)
    if scope is None:
        raise ServiceError(401, "the key is not known here: add it to serve.keys_file", "unknown_key")
    if required == "write" and scope == "read":
        raise ServiceError(403, "the key may read, not write: use one with the scope 'write'", "read_only")
