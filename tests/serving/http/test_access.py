"""No page of another server drives the service: Host, Origin and the declared type of a body."""

from __future__ import annotations

import hashlib
import http.client
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest

from maml_ray.serving.http.access import check_access
from maml_ray.serving.http.errors import ApiError
from tests.serving.local_service import backend_of, served
from tests.small_runs import agent_of, settings

TOKEN = "correct horse battery staple"
DIGEST = hashlib.sha256(TOKEN.encode()).digest()
BODY = b'{"observations": [0, 0]}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(backend_of(agent_of(settings()))) as found:
        yield found


def ask(
    url: str,
    headers: Mapping[str, str],
    method: str = "POST",
    path: str = "/act",
    body: bytes | None = BODY,
) -> tuple[int, str]:
    """Return status and text of the answer to a request with exactly these headers."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LocalHost:1", "127.0.0.1", "127.0.0.1:8000"),
        *("127.8.9.10", "[::1]", "[::1]:8000", "[::ffff:127.0.0.1]:8000"),
    ],
)
def test_addresses_of_the_machine_itself_are_served(url: str, host: str) -> None:
    assert ask(url, {"Host": host, **JSON})[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("xlocalhost", "0.0.0.0:8000", "192.0.2.1", "[::]", "[2001:db8::1]:8000"),
        *("evil@localhost", "", ":8000", "[", "127.1", "2130706433", "localhost:8000:evil.example"),
    ],
)
def test_a_name_that_anyone_can_give_to_this_machine_is_not(url: str, host: str) -> None:
    """DNS rebinding: a page's own name begins to mean 127.0.0.1."""
    for method, path, body in (("POST", "/act", BODY), ("GET", "/healthz", None)):
        status, text = ask(url, {"Host": host, **JSON}, method, path, body)
        assert status == 421, text
        assert "--token-file" in text


def test_probes_without_host_are_served(url: str) -> None:
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=30) as probe:
        probe.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert probe.recv(100).startswith(b"HTTP/1.1 200 ")


def test_pages_of_other_servers_are_refused_and_our_own_are_served(url: str) -> None:
    own = f"localhost:{urlsplit(url).port}"
    for origin in (
        *("https://evil.example", "null", "http://localhost:1", "http://localhost", "file://"),
        *(f"http://evil.example@{own}", f"http://{own}.evil.example", "http://[", ""),
    ):
        status, text = ask(url, {"Host": own, "Origin": origin, **JSON})
        assert (status, "another server" in text) == (403, True), (origin, text)
    for origin in (f"http://{own}", f"HTTP://{own.upper()}", f"https://{own}"):
        assert ask(url, {"Host": own, "Origin": origin, **JSON})[0] == 200, origin
    assert ask(url, {"Origin": "https://evil.example", **JSON})[0] == 403


@pytest.mark.parametrize(
    ("declared", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/x-www-form-urlencoded", 415),  # curl -d
        ("text/plain", 415),  # what a page may send to any server without asking it
        ("text/plain; application/json", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
        (None, 415),
    ],
)
def test_a_body_must_be_declared_as_json(url: str, declared: str | None, status: int) -> None:
    headers = {"Host": "localhost"}
    if declared is not None:
        headers["Content-Type"] = declared
    found, text = ask(url, headers)
    assert found == status, text
    if status == 415:
        assert "'Content-Type: application/json'" in text


def test_with_a_token_the_service_has_any_name() -> None:
    headers = {"Host": "robots.example", "Origin": "https://ui.example", **JSON}
    right = {"Authorization": f"Bearer {TOKEN}"}
    with served(backend_of(agent_of(settings())), token_digest=DIGEST) as url:
        assert ask(url, headers)[0] == 401
        assert ask(url, {**headers, **right})[0] == 200
        assert ask(url, {**right, "Content-Type": "text/plain"})[0] == 415


def scope(address: str | None, **headers: str) -> dict[str, Any]:
    return {
        "path": "/act",
        "server": None if address is None else (address, 8000),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }


def test_on_other_interfaces_addresses_and_the_machines_name_are_served() -> None:
    for host in ("192.0.2.7:8000", "[2001:db8::7]:8000", "localhost", socket.gethostname()):
        check_access(scope("192.0.2.7", host=host), None)
    with pytest.raises(ApiError, match="its IP address") as caught:
        check_access(scope("192.0.2.7", host="evil.example"), None)
    assert caught.value.status == 421


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", None])
def test_on_loopback_other_addresses_are_not(address: str | None) -> None:
    check_access(scope(address, host="[::1]:8000"), None)
    with pytest.raises(ApiError, match="localhost"):
        check_access(scope(address, host="192.0.2.7:8000"), None)
