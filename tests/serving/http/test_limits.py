"""Bodies beyond the limits: of one request, and of all requests together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import orjson
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from maml_ray.serving.http.act_body import MAX_OBSERVATIONS
from maml_ray.serving.http.errors import ApiError, ClientGone
from maml_ray.serving.http.limits import (
    BINARY,
    JSON,
    LARGE_BODIES,
    SMALL_BODY_BYTES,
    BodyLimits,
    BodyReceiver,
    RequestLimits,
)
from tests.serving.local_service import LIMITS, backend_of, served
from tests.small_runs import agent_of, settings

MAX_BYTES = 100_000
EVERYTHING = BodyLimits(MAX_BYTES, MAX_BYTES, "too many")


def receiver(timeout_s: float = 30.0) -> BodyReceiver:
    return BodyReceiver(RequestLimits(MAX_BYTES, timeout_s, 10, 100))


def scope(media_type: str = JSON, length: int | None = None) -> dict[str, Any]:
    headers = [(b"content-type", media_type.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    return {"headers": headers}


class Client:
    """A client that sends parts, and after the last one nothing more, or that it hangs up."""

    def __init__(
        self, parts: Sequence[bytes], *, ends: bool = True, hangs_up: bool = False
    ) -> None:
        self._parts, self._ends, self._hangs_up = list(parts), ends, hangs_up
        self.is_stuck = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            more = bool(self._parts) or not self._ends
            return {"type": "http.request", "body": part, "more_body": more}
        if self._hangs_up:
            return {"type": "http.disconnect"}
        self.is_stuck.set()
        await asyncio.Event().wait()
        raise AssertionError


async def received(bodies: BodyReceiver, *parts: bytes, limits: BodyLimits = EVERYTHING) -> bytes:
    async with bodies.receive(scope(), Client(parts).receive, limits, [JSON]) as body:
        return bytes(body.content)


def status_of(bodies: BodyReceiver, *parts: bytes, limits: BodyLimits = EVERYTHING) -> int:
    try:
        asyncio.run(received(bodies, *parts, limits=limits))
    except ApiError as error:
        return error.status
    return 200


@given(st.lists(st.binary(max_size=20), min_size=1))
def test_the_parts_are_put_together(parts: list[bytes]) -> None:
    assert asyncio.run(received(receiver(), *parts)) == b"".join(parts)


def test_the_size_is_limited_however_it_is_sent() -> None:
    half = bytes(MAX_BYTES // 2)
    assert status_of(receiver(), half, half) == 200
    assert status_of(receiver(), half, half, b"", b"x") == 413

    async def declared(length: int) -> None:
        sent = Client([], ends=False).receive
        async with receiver(0.01).receive(scope(length=length), sent, EVERYTHING, [JSON]):
            raise AssertionError

    for length, status in ((MAX_BYTES, 408), (MAX_BYTES + 1, 413)):
        with pytest.raises(ApiError) as caught:
            asyncio.run(declared(length))
        assert caught.value.status == status


def count_values(value: Any) -> int:
    return 1 + sum(map(count_values, value)) if isinstance(value, list) else 1


NUMBERS_AND_LISTS = st.recursive(
    st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner),
)


@given(NUMBERS_AND_LISTS, st.integers(1, 9))
def test_no_more_values_are_parsed_than_allowed(value: Any, split: int) -> None:
    """However they are nested, and wherever the network cuts them; an empty list counts as two."""
    content = json.dumps(value).encode()
    count = count_values(value) + content.count(b"[]")
    parts = [content[start : start + split] for start in range(0, len(content), split)]
    for allowed, status in ((count, 200), (count - 1, 413)):
        limits = BodyLimits(MAX_BYTES, allowed, "too many")
        assert status_of(receiver(), *parts, limits=limits) == status


def test_bodies_that_do_not_arrive_are_given_up() -> None:
    async def half_sent(client: Client) -> None:
        async with receiver(0.01).receive(scope(), client.receive, EVERYTHING, [JSON]):
            raise AssertionError

    with pytest.raises(ApiError, match=r"within 0\.01 s") as caught:
        asyncio.run(half_sent(Client([b"[1"], ends=False)))
    assert (caught.value.status, caught.value.headers["connection"]) == (408, "close")
    with pytest.raises(ClientGone):
        asyncio.run(half_sent(Client([b"[1"], ends=False, hangs_up=True)))


def test_the_deadline_is_that_of_the_body_not_of_the_work() -> None:
    async def work() -> None:
        async with receiver(0.01).receive(scope(), Client([b"1"]).receive, EVERYTHING, [JSON]):
            await asyncio.sleep(0.05)

    asyncio.run(work())


def test_all_bodies_together_hold_a_few_large_ones_and_any_number_of_small_ones() -> None:
    async def crowd() -> None:
        bodies = receiver()
        large = bytes(MAX_BYTES)
        held = [Client([large], ends=False) for _ in range(LARGE_BODIES)]
        tasks = [asyncio.create_task(hold(bodies, client)) for client in held]
        for client in held:
            await client.is_stuck.wait()
        small = bytes(SMALL_BODY_BYTES)
        assert await received(bodies, small) == small
        grown = bytes(LARGE_BODIES * SMALL_BODY_BYTES + 1)  # what the large ones leave, and a byte
        with pytest.raises(ApiError, match="other large requests") as caught:
            await received(bodies, small, grown)
        assert (caught.value.status, caught.value.headers["retry-after"]) == (503, "1")
        assert await received(bodies, small, grown[1:]) == small + grown[1:]
        tasks[0].cancel()  # its memory is free again
        await asyncio.wait(tasks[:1])
        assert await received(bodies, large) == large
        tasks[1].cancel()

    async def hold(bodies: BodyReceiver, client: Client) -> None:
        async with bodies.receive(scope(), client.receive, EVERYTHING, [JSON]):
            raise AssertionError

    asyncio.run(crowd())


def test_a_body_counts_until_it_has_been_used() -> None:
    async def use() -> None:
        bodies, large = receiver(), bytes(MAX_BYTES)
        async with bodies.receive(scope(), Client([large]).receive, EVERYTHING, [JSON]):
            async with bodies.receive(scope(), Client([large]).receive, EVERYTHING, [JSON]):
                with pytest.raises(ApiError):
                    await received(bodies, large)
            assert await received(bodies, large) == large

    asyncio.run(use())


def test_binary_bodies_have_bytes_and_no_values() -> None:
    async def binary() -> None:
        sent = Client([b"," * 50]).receive
        limits = BodyLimits(50, 1, "too many")
        async with receiver().receive(scope(BINARY), sent, limits, [JSON, BINARY]) as body:
            assert (body.media_type, body.content) == (BINARY, b"," * 50)

    asyncio.run(binary())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    agent = agent_of(settings())  # observations and actions of two numbers
    limits = replace(LIMITS, max_episode_steps=10, max_trajectory_steps=30)
    with served(backend_of(agent, limits=limits), **asdict(limits)) as found:
        yield found


def adapt(url: str, episodes: int, steps: int) -> requests.Response:
    row = [[0.0, 0.0]] * steps
    rewards = [[0.0] * steps] * episodes
    own = {"observations": [row] * episodes, "actions": [row] * episodes, "rewards": rewards}
    body = orjson.dumps({"trajectories": own})
    return requests.post(url + "/adapt", data=body, headers={"Content-Type": JSON}, timeout=60)


def test_steps_are_limited_for_an_episode_and_a_request(url: str) -> None:
    for episodes, steps in ((3, 10), (30, 1), (5, 6)):
        assert adapt(url, episodes, steps).status_code == 200
    long = adapt(url, 1, 11)
    assert (long.status_code, "at most 10 steps per episode" in long.text) == (422, True)
    many = adapt(url, 4, 10)
    assert (many.status_code, "at most 30 steps" in many.text) == (422, True)
    far_too_many = adapt(url, 1000, 10)
    assert (far_too_many.status_code, "more numbers than 30 steps" in far_too_many.text) == (
        413,
        True,
    )


def test_context_offsets_of_as_many_episodes_as_steps_are_allowed() -> None:
    size, limits = 600, replace(LIMITS, max_episode_steps=10, max_trajectory_steps=30)
    agent = agent_of(settings(inner={"parameters": "context", "context_size": size}))
    offsets = [[2.0] * size, [-2.0] * size] * 15
    own: dict[str, Any] = {"observations": [[[0.0, 0.0]]] * 30, "samples": [[[0.0, 0.0]]] * 30}
    own["rewards"] = [[1.0]] * 30
    own["context_offsets"] = offsets
    with served(backend_of(agent, limits=limits), **asdict(limits)) as url:
        body = orjson.dumps({"trajectories": own})
        headers = {"Content-Type": JSON}
        answer = requests.post(url + "/adapt", data=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text


def test_the_limits_are_in_openapi(url: str) -> None:
    paths = requests.get(url + "/openapi.json", timeout=60).json()["paths"]
    schema = paths["/adapt"]["post"]["requestBody"]["content"][JSON]["schema"]
    trajectories = schema["properties"]["trajectories"]["anyOf"][0]["properties"]
    for name in ("observations", "samples", "actions", "rewards", "mask", "log_probs"):
        array = trajectories[name]
        assert (array["maxItems"], array["items"]["maxItems"]) == (30, 10)
    assert "30 steps" in paths["/adapt"]["post"]["description"]
    for path in ("/act", "/adapt"):
        assert {"408", "413", "415", "503"} <= set(paths[path]["post"]["responses"])


def test_all_that_a_request_to_act_may_hold_is_answered(url: str) -> None:
    """The limits of values and bytes do not refuse what MAX_OBSERVATIONS allows."""
    longest = -1.2345678901234567e-300
    body = orjson.dumps({"observations": [[longest, longest]] * MAX_OBSERVATIONS, "seed": 1})
    headers = {"Content-Type": JSON}
    answer = requests.post(url + "/act", data=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    many = orjson.dumps({"observations": [[0] * 2] * 2 * MAX_OBSERVATIONS})
    refused = requests.post(url + "/act", data=many, headers=headers, timeout=60)
    assert (refused.status_code, "at most 4,096" in refused.text) == (413, True)
