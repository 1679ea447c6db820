"""Proxies of the environment are for other machines only."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from lrem.errors import ConfigError
from ray_apps.cluster.proxies import exempt_this_machine, is_this_machine, open_client
from ray_apps.serving.client import search
from ray_apps.serving.readiness import wait_until_ready


class Service(BaseHTTPRequestHandler):
    """Answers every request as a service would."""

    def do_GET(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps({"results": [], "path": self.path}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def service() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_a_service_on_this_machine_is_asked_without_the_proxy(
    service: str, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    assert search(service, "tea", 3, "never", None)["path"] == "/v1/search"
    wait_until_ready(service, deadline=0)


def test_a_proxy_that_cannot_be_used_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"all_proxy.* for http://shop.example .*no_proxy"):
        open_client(httpx.Client, "http://shop.example")


def test_other_machines_are_asked_through_the_proxy(service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", service)
    with open_client(httpx.Client, "http://shop.example") as http:
        assert http.get("http://shop.example/there").json()["path"] == "http://shop.example/there"


def test_this_machine_is_added_to_no_proxy_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "shop.example, localhost")
    monkeypatch.setenv("NO_PROXY", "*")
    exempt_this_machine()
    exempt_this_machine()
    hosts = os.environ["no_proxy"].split(",")
    assert hosts[:2] == ["shop.example", "localhost"]
    assert {"127.0.0.1", "::1", socket.gethostname().lower()} < {*hosts}
    assert len({*hosts}) == len(hosts)
    assert os.environ["NO_PROXY"] == "*"


def test_the_names_of_this_machine_are_known_in_any_case() -> None:
    assert is_this_machine(socket.gethostname().upper())
    assert is_this_machine("shop.LOCALHOST")
    assert not is_this_machine("198.51.100.7")
