from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maml_ray
from maml_ray.common.errors import RunDirError, UserError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.saved_policy import DESCRIPTION, PARAMETERS, load_policy, save_policy
from maml_ray.runs.adapt import adapt_run
from tests.docs.pages import python_block
from tests.small_runs import agent_of, run_of, settings


@pytest.fixture
def agent() -> Agent:
    found = agent_of(settings("half-cheetah-direction", inner={"learn_inner_rates": True}))
    return found.adapt(found.collect_support(seed=1))


def test_a_loaded_policy_is_bitwise_equal(tmp_path: Path, agent: Agent) -> None:
    save_policy(agent, tmp_path / "policy")
    back = maml_ray.load(tmp_path / "policy")
    assert back.settings == agent.settings
    assert back.spec == agent.spec
    assert back.adaptation_steps == 1
    observations = np.random.default_rng(0).standard_normal((5, 17))
    np.testing.assert_array_equal(back.act(observations), agent.act(observations))
    support = agent.collect_support(seed=2)
    for name, value in agent.adapt(support).parameters.items():
        np.testing.assert_array_equal(back.adapt(support).parameters[name], value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]  # nothing aside


def test_the_documented_plain_pytorch_acts_the_same(tmp_path: Path) -> None:
    folder = run_of(settings("half-cheetah-direction"), tmp_path / "run")
    adapted = adapt_run(folder.path, {"direction": -1.0})
    assert adapted.folder == folder.path / "adapted" / "backward"
    names: dict[str, Any] = {}
    exec(python_block("evaluation.md", "safetensors.torch"), names)
    observations = np.random.default_rng(0).standard_normal((5, 17)).astype(np.float32)
    theirs = names["load_with_pytorch"](adapted.folder)(torch.from_numpy(observations)).numpy()
    np.testing.assert_allclose(
        theirs, maml_ray.load(adapted.folder).act(observations), rtol=1e-5, atol=1e-6
    )


def test_adapting_is_the_agents_own_steps_on_fresh_support(tmp_path: Path) -> None:
    folder = run_of(settings(), tmp_path / "run")
    adapted = adapt_run(folder.path, {"x": 0.25, "y": -0.125}, steps=2, episodes=4, seed=3)
    assert adapted.steps == 2
    written = json.loads((adapted.folder / DESCRIPTION).read_text())
    assert written["task"]["parameters"] == {"x": 0.25, "y": -0.125}
    loaded = maml_ray.load(adapted.folder)
    assert loaded.adaptation_steps == 2
    start = maml_ray.load(folder.path)
    assert any((loaded.parameters[n] != v).any() for n, v in start.parameters.items())
    again = adapt_run(
        folder.path, {"x": 0.25, "y": -0.125}, steps=2, episodes=4, seed=3, output=tmp_path / "b"
    )
    assert (again.before, again.after) == (adapted.before, adapted.after)
    same = maml_ray.load(tmp_path / "b").parameters
    assert all((same[name] == value).all() for name, value in loaded.parameters.items())


def test_an_existing_folder_is_not_overwritten(tmp_path: Path, agent: Agent) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter").write_text("dear")
    with pytest.raises(RunDirError, match="already exists"):
        save_policy(agent, folder)
    run = run_of(settings(), tmp_path / "run")
    with pytest.raises(RunDirError, match="name another directory with --output"):
        adapt_run(run.path, {"x": 0.0, "y": 0.1}, output=folder)
    assert [path.name for path in folder.iterdir()] == ["letter"]


def test_an_invalid_task_is_refused(tmp_path: Path) -> None:
    run = run_of(settings(), tmp_path / "run")
    for parameters in ({"z": 1.0}, {"x": float("nan"), "y": 0.0}):
        with pytest.raises(UserError):
            adapt_run(run.path, parameters)
    assert not (run.path / "adapted").exists()


def broken(folder: Path, how: str) -> None:
    description = folder / DESCRIPTION
    data = json.loads(description.read_text())
    if how == "altered":
        content = bytearray((folder / PARAMETERS).read_bytes())
        content[-1] ^= 1
        (folder / PARAMETERS).write_bytes(bytes(content))
    elif how == "torn":
        (folder / PARAMETERS).write_bytes((folder / PARAMETERS).read_bytes()[:50])
    elif how == "missing":
        (folder / PARAMETERS).unlink()
    elif how == "format":
        description.write_text(json.dumps({**data, "format": 99}))
    elif how == "json":
        description.write_text("{")
    elif how == "list":
        description.write_text("[]")
    else:
        del data["policy"]
        description.write_text(json.dumps(data))


@pytest.mark.parametrize(
    "how", ["altered", "torn", "missing", "format", "json", "list", "no sizes"]
)
def test_a_broken_policy_is_refused_in_a_sentence(tmp_path: Path, agent: Agent, how: str) -> None:
    save_policy(agent, tmp_path / "policy")
    broken(tmp_path / "policy", how)
    with pytest.raises(RunDirError) as caught:
        load_policy(tmp_path / "policy")
    assert "policy" in str(caught.value)
    assert "\n" not in str(caught.value)
