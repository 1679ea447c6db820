"""Proxies of the environment (`http_proxy` and the like): for other machines only."""

import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

from lrem.errors import ConfigError

Client = TypeVar("Client", httpx.Client, httpx.AsyncClient)


def open_client(kind: Callable[..., Client], url: str, **options: Any) -> Client:
    """Return an HTTP client for `url`, which uses a proxy of the environment unless the host is this machine.

    Args:
        kind: httpx.Client or httpx.AsyncClient.
        url: what the client will be used for.
        options: passed on to it.

    Raises:
        ConfigError: the proxy's protocol is not supported.
    """
    try:
        return kind(trust_env=not is_this_machine(_host(url)), **options)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"the proxy in http_proxy, https_proxy or all_proxy cannot be used for {url} ({error}): set "
            "an http:// proxy, or list the host in no_proxy"
        ) from error


def exempt_this_machine() -> None:
    """Tell all libraries and child processes not to use a proxy for this machine: Ray's asks its own dashboard."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [host.strip() for host in os.environ.get(name, "").split(",") if host.strip()]
        own = [host for host in ("localhost", "127.0.0.1", "::1", *_own_addresses()) if host not in known]
        if known != ["*"]:
            os.environ[name] = ",".join([*known, *own])


def is_this_machine(host: str) -> bool:
    """Return True for a loopback address and for the names and addresses of this machine.

    >>> [is_this_machine(host) for host in ("localhost", "127.0.0.9", "::1", "0.0.0.0", "shop.example")]
    [True, True, True, True, False]
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost") or host == socket.gethostname()
    return address.is_loopback or address.is_unspecified or host in _own_addresses()


def _own_addresses() -> list[str]:
    try:
        return socket.gethostbyname_ex(socket.gethostname())[2]
    except OSError:
        return []


def _host(url: str) -> str:
    try:
        return httpx.URL(url).host
    except httpx.InvalidURL:  # the request will say so
        return ""
