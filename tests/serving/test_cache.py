"""A replica's copies: one question a second, and never an answer that is older."""

from __future__ import annotations

import asyncio

import pytest

from maml_ray.evaluation.agent import Agent
from maml_ray.serving.cache import CACHE_TTL_S, PolicyCache
from maml_ray.serving.policy_store import LookupResult, PolicyStore, ServedPolicy
from maml_ray.serving.requests import ApiError
from tests.serving.test_policy_store import Clock, a_store
from tests.small_runs import agent_of, settings


@pytest.fixture(scope="module")
def agent() -> Agent:
    return agent_of(settings())


class Asked:
    """The store, and what it was asked."""

    def __init__(self, store: PolicyStore) -> None:
        self.store = store
        self.questions: list[tuple[str, str | None]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, name: str, have: str | None) -> LookupResult | ApiError:
        self.questions.append((name, have))
        await self.go_on.wait()
        try:
            return self.store.find(name, have)
        except ApiError as refusal:
            return refusal


def test_the_store_is_asked_once_a_lease_and_sends_a_policy_once(agent: Agent) -> None:
    async def check() -> None:
        store, _ = a_store(agent)
        clock, asked = Clock(), Asked(store)
        copies = PolicyCache(asked, most=5, clock=clock)
        first = await copies.get("base")
        clock.now = CACHE_TTL_S * 0.99
        assert await copies.get("base") is first
        assert asked.questions == [("base", None)]
        clock.now = CACHE_TTL_S
        assert await copies.get("base") is first
        assert asked.questions == [("base", None), ("base", "checkpoint-5")]

    asyncio.run(check())


def test_what_is_replaced_or_removed_is_gone_after_a_lease(agent: Agent) -> None:
    async def check() -> None:
        store, _ = a_store(agent, most=1)
        clock = Clock()
        copies = PolicyCache(Asked(store), most=5, clock=clock)
        store.keep(ServedPolicy("a", agent))
        assert (await copies.get("base")).name == "checkpoint-5"
        assert (await copies.get("a")).name == "a"
        store.replace_base(ServedPolicy("checkpoint-6", agent))  # removes "a", for want of room
        clock.now = CACHE_TTL_S
        assert (await copies.get("base")).name == "checkpoint-6"
        with pytest.raises(ApiError, match="'a'"):
            await copies.get("a")

    asyncio.run(check())


def test_a_copy_does_not_outlive_its_policy(agent: Agent) -> None:
    async def check() -> None:
        store, time = a_store(agent, age=10.0)
        copies = PolicyCache(Asked(store), most=5, clock=time)
        store.keep(ServedPolicy("a", agent))
        time.now = 9.75
        assert (await copies.get("a")).name == "a"
        time.now = 10.0
        with pytest.raises(ApiError):
            await copies.get("a")

    asyncio.run(check())


def test_those_who_come_while_the_store_is_asked_share_its_answer(agent: Agent) -> None:
    async def check() -> None:
        asked = Asked(a_store(agent)[0])
        copies = PolicyCache(asked, most=5, clock=Clock())
        asked.go_on.clear()
        waiting = [asyncio.ensure_future(copies.get("base")) for _ in range(20)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # a caller that goes away leaves the others their answer
        await asyncio.sleep(0)
        asked.go_on.set()
        found = await asyncio.gather(*waiting[1:])
        assert len(set(map(id, found))) == 1
        assert len(asked.questions) == 1

    asyncio.run(check())


def test_copies_are_bounded_in_number(agent: Agent) -> None:
    async def check() -> None:
        store, _ = a_store(agent, most=10)
        asked = Asked(store)
        copies = PolicyCache(asked, most=2, clock=Clock())
        for name in "abc":
            store.keep(ServedPolicy(name, agent))
            await copies.get(name)
        await copies.get("c")
        await copies.get("b")
        assert len(asked.questions) == 3
        await copies.get("a")
        assert asked.questions[3] == ("a", None)

    asyncio.run(check())
