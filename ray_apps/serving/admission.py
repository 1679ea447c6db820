"""Who gets in: the length of a body, how many requests are under way, and what a bearer key may do.

Knows HTTP and the ingress that it stands before; does not know what is asked.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from ray import serve

from ray_apps.serving.auth import Scope, scope_of
from ray_apps.serving.errors import ServiceError, error_answer
from ray_apps.serving.search_backend import busy

LEFT = 499  # nginx's status of a client that did not wait for its answer: no failure of ours
UNCOUNTED = ("/healthz", "/readyz", "/metrics")  # they answer however much is under way


def _ingress() -> Any:
    """The ingress of this process (ingress.Ingress)."""
    return serve.get_replica_context().servable_object


class Door:
    """Refuses a body that is too long, before anything reads it whole, and counts the answers."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request of the ASGI protocol."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        ingress, status = _ingress(), 0

        async def counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            limit = int(ingress.settings.max_body_mb * 2**20)
            try:
                async with asyncio.timeout(ingress.settings.timeout_s):
                    body = await _body(scope, receive, limit)
            except TimeoutError:
                message = f"the body did not come within {ingress.settings.timeout_s:g} s: send it again"
                await error_answer(408, message, "slow_body")(scope, receive, counted)
                return
            if body is None:
                message = f"the body has more than {limit / 2**20:g} MiB: send less at once, or raise serve.max_body_mb"
                await error_answer(413, message, "too_long")(scope, receive, counted)
            else:
                await self.app(scope, _replay(body, receive), counted)
        except asyncio.CancelledError:
            status = status or LEFT
            raise
        finally:
            route = scope.get("route")
            ingress.measures.request(getattr(route, "path", "unknown"), status or 500)


async def _body(scope: Any, receive: Any, limit: int) -> list[Any] | None:
    """The messages of a body; None where they are longer than `limit`, or say that they will be."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    parts, read = [], int(length) if length.isdigit() else 0
    if read > limit:
        return None
    read = 0
    while True:
        message = await receive()
        parts.append(message)
        read += len(message.get("body", b""))
        if read > limit:
            return None
        if not message.get("more_body"):
            return parts


def _replay(parts: list[Any], receive: Any) -> Any:
    rest = iter(parts)

    async def again() -> Any:
        return next(rest, None) or await receive()

    return again


async def admit(request: Request) -> AsyncIterator[None]:
    """A dependency of every route: no more than `serve.max_requests` are under way.

    Raises:
        ServiceError: 429, there are that many.
    """
    ingress = _ingress()
    if request.scope["route"].path in UNCOUNTED:
        yield
        return
    if ingress.under_way >= ingress.settings.max_requests:
        raise busy()
    ingress.under_way += 1
    ingress.measures.under_way(ingress.under_way)
    try:
        yield
    finally:
        ingress.under_way -= 1
        ingress.measures.under_way(ingress.under_way)


bearer = HTTPBearer(auto_error=False, description="A key of serve.keys_file; none is needed where it is not set.")
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]


async def reader(credentials: Credentials) -> None:
    """A dependency of what reads. Raises ServiceError 401 without a known key."""
    _require(credentials, "read")


async def writer(credentials: Credentials) -> None:
    """A dependency of what writes. Raises ServiceError 401 without a known key, 403 with one that may only read."""
    _require(credentials, "write")


def _require(credentials: HTTPAuthorizationCredentials | None, scope: Scope) -> None:
    keys = _ingress().keys
    if not keys:
        return
    if credentials is None:
        raise ServiceError(401, "no key was sent: add the header 'Authorization: Bearer KEY'", "no_key")
    may = scope_of(keys, credentials.credentials)
    if may is None:
        raise ServiceError(401, "the key is not known here: it has to stand in serve.keys_file", "unknown_key")
    if scope == "write" and may == "read":
        raise ServiceError(403, "the key may read, not write: use one with the scope 'write'", "read_only")
