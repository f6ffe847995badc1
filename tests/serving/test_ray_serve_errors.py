"""Errors of the service when another of its processes is busy, slow, unavailable or broken."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from maml_ray.common.errors import UserError
from maml_ray.persistence.checkpoint_format import load_checkpoint
from maml_ray.persistence.checkpoint_store import save_checkpoint
from maml_ray.persistence.storage import LocalStorage
from maml_ray.serving.http.errors import ApiError
from maml_ray.serving.policy_store import LookupResult
from maml_ray.serving.ray_serve import StoreDeployment, _wait_for
from maml_ray.serving.served_policy import ServedPolicy, new_policy_name
from maml_ray.serving.settings import parse_serve_settings
from tests.small_runs import agent_of, run_of, settings


async def failing(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (BackPressureError(num_queued_requests=16, max_queued_requests=16), "too many"),
        (DeploymentUnavailableError(DeploymentID("Adapter", "maml-ray")), "unavailable"),
        (ActorDiedError(), "unavailable"),
    ],
)
def test_a_busy_or_unavailable_deployment_is_named(error: Exception, word: str) -> None:
    with pytest.raises(ApiError) as caught:
        asyncio.run(_wait_for(failing(error), "adapter", 5.0))
    assert caught.value.status == 503
    assert word in caught.value.message
    assert "adapter" in caught.value.message


def test_a_deployment_that_does_not_answer_times_out() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(ApiError, match=r"within 0\.01 s"):
        asyncio.run(_wait_for(never(), "adapter", 0.01))


def test_a_defect_is_raised() -> None:
    defect = RayTaskError("adapt", "traceback", ValueError("ours"))
    with pytest.raises(RayTaskError):
        asyncio.run(_wait_for(failing(defect), "adapter", 5.0))


def test_another_checkpoint_goes_live_and_adapted_policies_stay(tmp_path: Path) -> None:
    storage = LocalStorage(run_of(settings(), tmp_path / "run").path)
    first = load_checkpoint(storage, "checkpoints/00000001")
    other = {name: value + 1 for name, value in first.learner.parameters.items()}
    later = replace(first, iteration=2, learner=replace(first.learner, parameters=other))
    save_checkpoint(storage, later, keep=2)
    store = StoreDeployment(parse_serve_settings({"run": str(tmp_path / "run")}))

    def found(name: str) -> LookupResult:
        answer = asyncio.run(store.get(name, None))
        assert isinstance(answer, LookupResult), answer
        return answer

    store.reconfigure({"checkpoint": "newest"})
    assert found("base").name == "checkpoint-2"
    asyncio.run(store.add(ServedPolicy("adapted-1", agent_of(settings()))))
    store.reconfigure({"checkpoint": 1})
    base = found("base")
    assert base.name == "checkpoint-1"
    assert base.policy is not None
    for name, value in first.learner.parameters.items():
        assert (base.policy.agent.parameters[name] == value).all()
    assert found("adapted-1").name == "adapted-1"
    for wrong in ({"checkpoint": 7}, {"checkpont": 1}):
        with pytest.raises(UserError):
            store.reconfigure(wrong)
    assert found("base").name == "checkpoint-1"


def test_a_store_that_takes_the_place_of_a_dead_one_has_its_policies(tmp_path: Path) -> None:
    run = run_of(settings(), tmp_path / "run")
    chosen = parse_serve_settings({"run": str(run.path)})
    adapted = ServedPolicy(new_policy_name(), agent_of(settings()))

    def started() -> StoreDeployment:
        store = StoreDeployment(chosen)
        store.reconfigure({"checkpoint": "newest"})
        return store

    assert asyncio.run(started().add(adapted)) > 0.0
    store = started()
    found = asyncio.run(store.get(adapted.name, None))
    assert isinstance(found, LookupResult), found
    assert found.policy is not None
    assert found.policy.parameters_file == adapted.parameters_file
    assert asyncio.run(store.read_warnings()) == []
