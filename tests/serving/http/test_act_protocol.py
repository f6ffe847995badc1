"""What the protocol answers itself equals the application's answers, and the library's actions."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import pytest
import requests

import maml_ray
from maml_ray.evaluation.agent import Agent
from tests.docs.pages import python_block
from tests.evaluation.test_agent import discrete_agent
from tests.serving.local_service import backend_of, served
from tests.small_runs import run_of, settings

OBSERVATION = [0.1 * number - 0.8 for number in range(17)]
JSON = {"content-type": "application/json"}
BINARY = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    chosen = settings("half-cheetah-direction", policy={"action_scale": 1.0})
    return maml_ray.load(run_of(chosen, tmp_path_factory.mktemp("acting") / "run").path)


@pytest.fixture(scope="module")
def url(agent: Agent) -> Iterator[str]:
    """The URL of a service whose protocol has the base policy at hand, however long tests take."""
    with pytest.MonkeyPatch.context() as patched, served(backend_of(agent)) as found:
        patched.setattr("maml_ray.serving.cache.CACHE_TTL_S", 1000.0)
        assert requests.get(found + "/healthz", timeout=30).status_code == 200
        yield found


@pytest.fixture(scope="module")
def asgi_url(agent: Agent) -> Iterator[str]:
    with served(backend_of(agent), only_asgi=True) as found:
        yield found


def observations(count: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((count, 17)).astype(np.float32)


def packed(numbers: list[float]) -> bytes:
    return np.array(numbers, "<f4").tobytes()


def post(url: str, body: Any, headers: dict[str, str] = JSON, query: str = "") -> Any:
    content = (
        body if isinstance(body, bytes) else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    )
    return requests.post(f"{url}/act{query}", data=content, headers=headers, timeout=30)


def test_small_requests_do_not_reach_the_application(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any) -> Any:
        raise RuntimeError("the application was asked")

    monkeypatch.setattr("maml_ray.serving.http.api.parse_act", unreachable)
    monkeypatch.setattr("maml_ray.serving.cache.CACHE_TTL_S", 1000.0)
    with served(backend_of(agent)) as url:
        assert requests.get(url + "/healthz", timeout=30).status_code == 200  # caches the policy
        assert post(url, {"observations": OBSERVATION}).status_code == 200
        assert post(url, packed(OBSERVATION), BINARY).status_code == 200
        assert post(url, {"observations": observations(2000)}).status_code == 500


@pytest.mark.parametrize(
    ("body", "headers", "query", "status"),
    [
        ({"observations": OBSERVATION}, JSON, "", 200),
        ({"observations": [OBSERVATION] * 3}, JSON, "", 200),
        ({"observations": OBSERVATION, "explore": True, "seed": 3}, JSON, "", 200),
        ({"observations": OBSERVATION, "policy": "checkpoint-1"}, JSON, "", 200),
        ({"observations": OBSERVATION, "policy": "nobody"}, JSON, "", 404),
        ({"observations": OBSERVATION[1:]}, JSON, "", 422),
        ({"observations": [1e39] * 17}, JSON, "", 422),
        ({"observations": [3e38] * 17}, JSON, "", 200),
        ({"observations": OBSERVATION, "polcy": "x"}, JSON, "", 422),
        ({"observations": OBSERVATION}, JSON, "?seed=3", 422),
        ({"observations": OBSERVATION}, {"content-type": "text/plain"}, "", 415),
        ({"observations": OBSERVATION}, {**JSON, "origin": "http://stranger.example"}, "", 403),
        ({"observations": OBSERVATION}, {**JSON, "host": "stranger.example"}, "", 421),
        (b"{", JSON, "", 400),
        (b"", JSON, "", 400),
        (packed(OBSERVATION), BINARY, "", 200),
        (packed(OBSERVATION * 2), BINARY, "?explore=true&seed=5", 200),
        (packed(OBSERVATION)[:-1], BINARY, "", 422),
        (b"", BINARY, "", 422),
        (packed([np.nan] * 17), BINARY, "", 422),
        (packed(OBSERVATION), BINARY, "?explore=yes", 422),
        (packed(OBSERVATION), BINARY, "?seed=-1", 422),
        (packed(OBSERVATION), BINARY, "?sed=1", 422),
        (packed(OBSERVATION), BINARY, "?seed=1&seed=2", 422),
        (packed(OBSERVATION), BINARY, "?policy=nobody", 404),
    ],
)
def test_the_answers_are_those_of_the_application(
    url: str, asgi_url: str, body: Any, headers: dict[str, str], query: str, status: int
) -> None:
    answer, expected = (post(each, body, headers, query) for each in (url, asgi_url))
    varying = {"date", "server"}
    port, other = (urlsplit(each).netloc for each in (url, asgi_url))
    assert (answer.status_code, expected.status_code) == (status, status), answer.text
    assert answer.content == expected.content.replace(other.encode(), port.encode())
    assert {name for name in answer.headers if name.lower() not in varying} == {
        name for name in expected.headers if name.lower() not in varying
    }
    assert answer.headers["content-type"] == expected.headers["content-type"]
    if answer.status_code != 200:
        assert list(answer.json()) == ["error"]


def test_binary_actions_are_the_librarys_to_the_bit(url: str, agent: Agent) -> None:
    seen = observations(5)
    answer = post(url, seen.tobytes(), BINARY)
    assert answer.headers["maml-ray-policy"] == "checkpoint-1"
    np.testing.assert_array_equal(rows(answer, 6), agent.act(seen))
    sampled = rows(post(url, seen.tobytes(), BINARY, "?explore=true&seed=3&policy=base"), 13)
    as_json = post(url, {"observations": seen, "explore": True, "seed": 3}).json()
    for name, columns in (
        ("actions", sampled[:, :6]),
        ("samples", sampled[:, 6:12]),
        ("log_probs", sampled[:, 12]),
    ):
        np.testing.assert_array_equal(columns, np.float32(as_json[name]))
    expected = agent.act(seen, explore=True, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(sampled[:, :6], expected)


def test_the_documented_binary_client(url: str, agent: Agent) -> None:
    names: dict[str, Any] = {}
    exec(python_block("serving.md", "octet-stream"), names)
    seen = observations(3)
    np.testing.assert_array_equal(names["act"](seen, service=url), agent.act(seen))


def test_binary_actions_of_a_discrete_policy_are_whole_numbers() -> None:
    agent = discrete_agent()
    seen = np.random.default_rng(0).standard_normal((4, agent.spec.observation_size))
    with served(backend_of(agent)) as url:
        answer = post(url, seen.astype("<f4").tobytes(), BINARY)
        np.testing.assert_array_equal(
            rows(answer, 1)[:, 0], agent.act(seen.astype(np.float32)).astype(np.float32)
        )
        sampled = rows(post(url, seen.astype("<f4").tobytes(), BINARY, "?explore=true"), 3)
    np.testing.assert_array_equal(sampled[:, 0], sampled[:, 1])
    assert (sampled[:, 2] <= 0.0).all()


def rows(answer: Any, columns: int) -> Any:
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<f4").reshape(-1, columns)


def test_no_answers_are_mixed_up(url: str, agent: Agent) -> None:
    """Many clients at once, two policies, both kinds of bodies: each gets its own actions."""
    support: Any = {"task": {"direction": -1}, "measured_episodes": 0}
    adapted = requests.post(url + "/adapt", json=support, timeout=60).json()["policy"]
    loaded = {"base": agent, adapted: _downloaded(url, adapted, agent)}

    def act(number: int) -> None:
        policy = "base" if number % 2 else adapted
        seen = observations(1 + number % 3, seed=number)
        explore = number % 5 == 0
        rng = np.random.default_rng(number) if explore else None
        expected = loaded[policy].act(seen, explore=explore, rng=rng)
        body = {"observations": seen, "policy": policy, "explore": explore, "seed": number}
        if number % 7:
            actions = np.float32(post(url, body).json()["actions"])
        else:
            query = f"?policy={policy}&explore={json.dumps(explore)}&seed={number}"
            columns = 13 if explore else 6
            actions = rows(post(url, seen.tobytes(), BINARY, query), columns)[:, :6]
        np.testing.assert_array_equal(actions, expected)

    with ThreadPoolExecutor(32) as callers:
        list(callers.map(act, range(320)))


def _downloaded(url: str, name: str, agent: Agent) -> Agent:
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        for path, file in (("", "parameters.safetensors"), ("/policy.json", "policy.json")):
            content = requests.get(f"{url}/policy/{name}{path}", timeout=30).content
            (folder / file).write_bytes(content)
        return maml_ray.load(folder)


def head(content: bytes, *lines: str, version: str = "1.1") -> bytes:
    text = f"POST /act HTTP/{version}\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return (text + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode()


def exchange(url: str, *parts: bytes, answers: int = 1, ends: bool = False) -> list[Any]:
    """Send parts of requests over one connection, and return what is answered.

    With ``ends`` the service must close the connection after the last answer.
    """
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=30) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            sock.sendall(part)
        received = []
        stream = sock.makefile("rb")
        for _ in range(answers):
            response = http.client.HTTPResponse(_Reading(stream))  # type: ignore[arg-type]
            response.begin()
            received.append((response.status, response.read(), dict(response.getheaders())))
        assert not ends or stream.read() == b""
    return received


class _Reading:
    """A socket for :class:`http.client.HTTPResponse` that goes on where the last one ended."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def makefile(self, mode: str) -> Any:
        return _Open(self._stream)


class _Open:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        pass


def request(number: int, *lines: str, version: str = "1.1") -> bytes:
    content = orjson.dumps(
        {"observations": observations(1, number), "seed": number}, option=orjson.OPT_SERIALIZE_NUMPY
    )
    return head(content, f"content-length: {len(content)}", *lines, version=version) + content


def expected(agent: Agent, number: int) -> bytes:
    content = {"policy": "checkpoint-1", "actions": agent.act(observations(1, number))}
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def test_pipelined_requests_are_answered_in_order(url: str, agent: Agent) -> None:
    healthz = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    sent = request(0) + request(1) + healthz + request(2) + request(3)
    answers = exchange(url, sent, answers=5)
    assert [status for status, _, _ in answers] == [200] * 5
    bodies = [body for _, body, _ in answers]
    assert json.loads(bodies.pop(2))["status"] == "ok"
    assert bodies == [expected(agent, number) for number in range(4)]


def test_a_request_may_arrive_byte_by_byte(url: str, agent: Agent) -> None:
    sent = request(4) + request(5)
    parts = [sent[start : start + 7] for start in range(0, len(sent), 7)]
    answers = exchange(url, *parts, answers=2)
    assert [body for _, body, _ in answers] == [expected(agent, 4), expected(agent, 5)]


def test_old_and_closing_clients(url: str, agent: Agent) -> None:
    for sent in (request(6, version="1.0"), request(6, "connection: close")):
        ((status, body, headers),) = exchange(url, sent, ends=True)
        assert (status, body) == (200, expected(agent, 6))
        assert headers["connection"] == "close"
    content = request(7)[request(7).index(b"\r\n\r\n") + 4 :]
    chunked = head(content, "transfer-encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (
        len(content),
        content,
    )
    ((status, body, _),) = exchange(url, chunked)
    assert (status, body) == (200, expected(agent, 7))
    asking = head(content, f"content-length: {len(content)}", "expect: 100-continue")
    answers = exchange(url, asking, content)  # the client library skips the 100
    assert answers[0][:2] == (200, expected(agent, 7))


def test_hanging_up_leaves_the_service_as_it_was(url: str, agent: Agent) -> None:
    for sent in (request(8)[:-5], request(8)):
        exchange(url, sent, answers=0)
    ((status, body, _),) = exchange(url, request(9))
    assert (status, body) == (200, expected(agent, 9))


@pytest.mark.parametrize(
    "functions", [["batching.act_batch"], ["http.act_protocol.encode_act", "http.api.encode_act"]]
)
def test_a_defect_is_a_500(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, functions: list[str]
) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("a secret")

    for function in functions:
        monkeypatch.setattr(f"maml_ray.serving.{function}", broken)
    with served(backend_of(agent)) as url:
        for _ in range(2):
            answer = post(url, {"observations": OBSERVATION})
            assert (answer.status_code, answer.json()) == (
                500,
                {"error": "the service failed: see its log"},
            )


def test_the_token_is_checked(agent: Agent) -> None:
    with served(backend_of(agent), token_digest=hashlib.sha256(b"t" * 32).digest()) as url:
        assert requests.get(url + "/healthz", timeout=30).status_code == 200
        for token, status in (("t" * 32, 200), ("u" * 32, 401)):
            headers = {**JSON, "authorization": f"Bearer {token}"}
            assert post(url, {"observations": OBSERVATION}, headers).status_code == status
        assert post(url, {"observations": OBSERVATION}).status_code == 401
