"""The cache asks the store once a second, and never returns an older policy."""

from __future__ import annotations

import asyncio

import pytest

from maml_ray.evaluation.agent import Agent
from maml_ray.serving.cache import CACHE_TTL_S, PolicyCache
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.policy_store import LookupResult, PolicyStore
from maml_ray.serving.served_policy import ServedPolicy
from tests.serving.test_policy_store import Clock, a_store
from tests.small_runs import agent_of, settings


@pytest.fixture(scope="module")
def agent() -> Agent:
    return agent_of(settings())


class RecordingStore:
    """A store that records its lookups, and can delay its replies or be out of reach."""

    def __init__(self, store: PolicyStore) -> None:
        self.store = store
        self.is_reachable = True
        self.lookups: list[tuple[str, str | None]] = []
        self.may_reply = asyncio.Event()
        self.may_reply.set()

    async def __call__(self, name: str, cached_name: str | None) -> LookupResult | ApiError:
        self.lookups.append((name, cached_name))
        await self.may_reply.wait()
        if not self.is_reachable:
            raise ApiError(503, "the policy store is unavailable: try again later")
        try:
            return self.store.get(name, cached_name)
        except ApiError as error:
            return error


def test_the_store_is_asked_once_per_ttl_and_sends_a_policy_once(agent: Agent) -> None:
    async def check() -> None:
        store, _ = a_store(agent)
        clock, recorder = Clock(), RecordingStore(store)
        cache = PolicyCache(recorder, max_policies=5, clock=clock)
        first = await cache.get("base")
        clock.now = CACHE_TTL_S * 0.99
        assert await cache.get("base") is first
        assert recorder.lookups == [("base", None)]
        clock.now = CACHE_TTL_S
        assert await cache.get("base") is first
        assert recorder.lookups == [("base", None), ("base", "checkpoint-5")]

    asyncio.run(check())


def test_what_is_replaced_or_removed_is_gone_after_the_ttl(agent: Agent) -> None:
    async def check() -> None:
        store, _ = a_store(agent, max_policies=1)
        clock = Clock()
        cache = PolicyCache(RecordingStore(store), max_policies=5, clock=clock)
        store.add(ServedPolicy("a", agent))
        assert (await cache.get("base")).name == "checkpoint-5"
        assert (await cache.get("a")).name == "a"
        store.replace_base(ServedPolicy("checkpoint-6", agent))  # removes "a": the store is full
        clock.now = CACHE_TTL_S
        assert (await cache.get("base")).name == "checkpoint-6"
        with pytest.raises(ApiError, match="'a'"):
            await cache.get("a")

    asyncio.run(check())


def test_an_entry_does_not_outlive_its_policy(agent: Agent) -> None:
    async def check() -> None:
        store, time = a_store(agent, age=10.0)
        cache = PolicyCache(RecordingStore(store), max_policies=5, clock=time)
        store.add(ServedPolicy("a", agent))
        time.now = 9.75
        assert (await cache.get("a")).name == "a"
        time.now = 10.0
        with pytest.raises(ApiError):
            await cache.get("a")

    asyncio.run(check())


def test_cached_policies_are_used_until_they_expire_while_the_store_is_out_of_reach(
    agent: Agent,
) -> None:
    async def check() -> None:
        store, time = a_store(agent, age=10.0)
        recorder = RecordingStore(store)
        cache = PolicyCache(recorder, max_policies=5, clock=time)
        adapted = ServedPolicy("a", agent)
        store.add(adapted)
        base = await cache.get("base")
        assert await cache.get("a") is adapted
        recorder.is_reachable = False
        for now in (5.0, 9.9):
            time.now = now
            assert await cache.get("a") is adapted
            assert await cache.get("base") is base
        assert len(recorder.lookups) == 6  # the store is asked again, once per TTL
        time.now = 10.0
        assert await cache.get("base") is base
        for name in ("a", "b"):  # expired, and never cached
            with pytest.raises(ApiError, match="unavailable"):
                await cache.get(name)
        recorder.is_reachable = True
        time.now = 20.0
        store.replace_base(ServedPolicy("checkpoint-6", agent))
        assert (await cache.get("base")).name == "checkpoint-6"

    asyncio.run(check())


def test_a_store_that_does_not_answer_delays_a_cached_policy_briefly(agent: Agent) -> None:
    async def check() -> None:
        recorder, clock = RecordingStore(a_store(agent)[0]), Clock()
        cache = PolicyCache(recorder, max_policies=5, clock=clock, patience_s=0.0)
        base = await cache.get("base")
        recorder.may_reply.clear()
        for now in (1.0, 1.9, 2.0):
            clock.now = now
            assert await cache.get("base") is base
        assert len(recorder.lookups) == 2  # the second one is still waiting
        recorder.store.replace_base(ServedPolicy("checkpoint-6", agent))
        recorder.may_reply.set()
        clock.now = 3.0
        while (await cache.get("base")) is base:
            await asyncio.sleep(0)
        assert (await cache.get("base")).name == "checkpoint-6"

    asyncio.run(asyncio.wait_for(check(), 60.0))


def test_concurrent_requests_share_one_lookup(agent: Agent) -> None:
    async def check() -> None:
        recorder = RecordingStore(a_store(agent)[0])
        cache = PolicyCache(recorder, max_policies=5, clock=Clock())
        recorder.may_reply.clear()
        waiting = [asyncio.ensure_future(cache.get("base")) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # a caller that disconnects: the others still get the reply
        await asyncio.sleep(0)
        recorder.may_reply.set()
        found = await asyncio.gather(*waiting[1:])
        assert len(set(map(id, found))) == 1
        assert len(recorder.lookups) == 1

    asyncio.run(check())


def test_the_number_of_entries_is_bounded(agent: Agent) -> None:
    async def check() -> None:
        store, _ = a_store(agent, max_policies=10)
        recorder = RecordingStore(store)
        cache = PolicyCache(recorder, max_policies=2, clock=Clock())
        for name in "abc":
            store.add(ServedPolicy(name, agent))
            await cache.get(name)
        await cache.get("c")
        await cache.get("b")
        assert len(recorder.lookups) == 3
        await cache.get("a")
        assert recorder.lookups[3] == ("a", None)

    asyncio.run(check())
