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
        if known != ["*"]:
            os.environ[name] = ",".join(dict.fromkeys([*known, *_own_hosts()]))


def is_this_machine(host: str) -> bool:
    """Return True for a loopback address and for the names and addresses of this machine.

    >>> [is_this_machine(host) for host in ("localhost", "127.0.0.9", "::1", "0.0.0.0", "shop.example")]
    [True, True, True, True, False]
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host.lower().endswith(".localhost") or host.lower() in _own_hosts()
    return address.is_loopback or address.is_unspecified or host in _own_hosts()


def _own_hosts() -> list[str]:
    """Return this machine's names and addresses, among them the one that other machines see. Asks no name server."""
    hosts = ["localhost", "127.0.0.1", "::1", socket.gethostname().lower()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only chooses the address to send from
            hosts.append(probe.getsockname()[0])
        except OSError:  # no network
            pass
    return hosts


def _host(url: str) -> str:
    try:
        return httpx.URL(url).host
    except httpx.InvalidURL:  # the request will say so
        return ""
