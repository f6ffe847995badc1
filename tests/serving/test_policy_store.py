"""The store keeps a bounded number of adapted policies, for a bounded time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import requests

from maml_ray.common.errors import RunWarning
from maml_ray.evaluation.agent import Agent
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.policy_store import PolicyStore
from maml_ray.serving.served_policy import ServedPolicy, load_base_policy
from tests.serving.local_service import backend_of, served
from tests.small_runs import agent_of, run_of, settings


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def agent() -> Agent:
    return agent_of(settings())


def a_store(agent: Agent, max_policies: int = 3, age: float = 10.0) -> tuple[PolicyStore, Clock]:
    clock = Clock()
    base = ServedPolicy("checkpoint-5", agent)
    return PolicyStore(base, max_policies=max_policies, max_age_s=age, clock=clock), clock


def is_gone(store: PolicyStore, name: str) -> bool:
    try:
        return store.get(name).name != name
    except ApiError as error:
        return error.status == 404 and name in error.message


def test_beyond_the_maximum_the_least_recently_used_is_removed(agent: Agent) -> None:
    store, _ = a_store(agent)
    for name in ("a", "b", "c"):
        store.add(ServedPolicy(name, agent))
    assert store.get("a").name == "a"  # used: now "b" is the oldest
    store.add(ServedPolicy("d", agent))
    assert [is_gone(store, name) for name in "abcd"] == [False, True, False, False]
    assert len(store) == 3


def test_use_does_not_extend_a_policys_lifetime(agent: Agent) -> None:
    store, clock = a_store(agent)
    assert store.add(ServedPolicy("a", agent)) == 10.0
    clock.now = 4.0
    store.add(ServedPolicy("b", agent))
    clock.now = 9.0
    assert store.get("a").expires_in_s == 1.0
    clock.now = 10.0
    assert is_gone(store, "a")
    assert not is_gone(store, "b")
    clock.now = 14.0
    assert is_gone(store, "b")
    assert len(store) == 0


def test_the_base_stays_and_is_found_by_both_names(agent: Agent) -> None:
    store, clock = a_store(agent, max_policies=1)
    for name in "abcdef":
        store.add(ServedPolicy(name, agent))
    clock.now = 1e9
    for name in ("base", "checkpoint-5"):
        found = store.get(name)
        assert (found.name, found.expires_in_s) == ("checkpoint-5", None)


def test_a_new_checkpoint_is_live_at_once_and_the_old_one_ages(agent: Agent) -> None:
    store, clock = a_store(agent)
    store.add(ServedPolicy("a", agent))
    store.replace_base(ServedPolicy("checkpoint-6", agent))
    assert store.get("base").name == "checkpoint-6"
    assert store.get("checkpoint-5").expires_in_s == 10.0
    assert not is_gone(store, "a")
    clock.now = 10.0
    assert is_gone(store, "checkpoint-5")
    store.replace_base(ServedPolicy("checkpoint-5", agent))  # and back
    assert store.get("checkpoint-5").expires_in_s is None
    store.replace_base(ServedPolicy("checkpoint-5", agent))
    assert len(store) == 1  # checkpoint-6 alone


def test_damaged_newer_checkpoints_are_counted_and_told_to_probes(
    agent: Agent, tmp_path: Path
) -> None:
    folder = run_of(settings(), tmp_path / "run")
    shutil.copytree(folder.checkpoints / "00000001", folder.checkpoints / "00000002")
    (folder.checkpoints / "00000002" / "manifest.json").write_text("{")
    with pytest.warns(RunWarning, match="checkpoint 1 is used"):
        base = load_base_policy(str(folder.path))
    assert (base.name, base.num_passed_over) == ("checkpoint-1", 1)
    store = PolicyStore(base, max_policies=3, max_age_s=10.0)
    with served(backend_of(base.agent, store)) as url:
        (told,) = requests.get(f"{url}/healthz", timeout=30).json()["warnings"]
    assert told.startswith("a newer checkpoint is damaged or incomplete, and checkpoint-1 is")
    assert str(tmp_path) not in told  # no token is needed to read it


def test_what_the_requester_has_is_not_sent_again(agent: Agent) -> None:
    store, _ = a_store(agent)
    adapted = ServedPolicy("a", agent)
    store.add(adapted)
    assert store.get("a").policy is adapted
    assert store.get("a", cached_name="a").policy is None
    assert store.get("base", cached_name="checkpoint-4").policy is not None
    assert store.get("base", cached_name="checkpoint-5").policy is None
