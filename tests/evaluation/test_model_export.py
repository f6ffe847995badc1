"""An exported policy, run by programs that nobody here wrote, acts as ours does."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from maml_ray.common.errors import RunDirError, UserError
from maml_ray.common.normalization import Normalizer
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation import model_export
from maml_ray.evaluation.agent import Agent
from maml_ray.maml.distributions import to_numpy
from maml_ray.policies.action_bounds import ActionBounds
from maml_ray.policies.action_sampler import make_sampler
from maml_ray.policies.spec import PolicySpec
from tests.docs.pages import python_block
from tests.oracles import naive as oracles

FORMATS = ("onnx", "torchscript")


def agent_with(**spec: Any) -> Agent:
    """A policy whose weights, normalization and standard deviations are all out of the ordinary."""
    rng = np.random.default_rng(3)
    chosen = PolicySpec(
        **{
            "observation_size": 5,
            "action_size": 3,
            "hidden_sizes": (16, 8),
            "activation": "tanh",
            "initial_log_std": 0.0,
            "min_log_std": -1.0,
            **spec,
        }
    )
    parameters = to_numpy(oracles.random_parameters(chosen, rng))
    parameters["unused_rates"] = np.ones(3, np.float32)  # learned inner rates are no part of it
    mean, scale = rng.normal(2.0, 5.0, 5), rng.uniform(0.1, 30.0, 5)
    normalizer = Normalizer(mean.astype(np.float32), scale.astype(np.float32))
    return Agent(Settings(), chosen, parameters, normalizer)


def agent_with_context() -> Agent:
    """A policy whose context of two numbers has been moved, which its first bias holds."""
    agent = agent_with()
    inner = {"parameters": "context", "context_size": 2}
    weight = np.random.default_rng(5).normal(size=(16, 2)).astype(np.float32)
    parameters = {**agent.parameters, "context_weight": weight}
    before = replace(agent, settings=validate_settings({"inner": inner}), parameters=parameters)
    return before.support_agents(2)[0]


AGENTS = {
    "context": agent_with_context(),
    "tanh": agent_with(),
    "relu": agent_with(activation="relu", action_scale=2.5),
    "linear": agent_with(hidden_sizes=()),
    "discrete": agent_with(discrete=True, first_action=-1),
    "unnormalized": replace(agent_with(), normalizer=None),
    "clipped": agent_with(
        action_scale=2.0,
        action_bounds=ActionBounds("clip", (-1.0, 0.0, -2.0), (1.0, 0.5, 7.0), "float32"),
    ),
    "rescaled": agent_with(
        activation="relu",
        action_bounds=ActionBounds("rescale", (-1.0, 5.0, -2.0), (1.0, 10.0, -1.0), "float64"),
    ),
    "half open": agent_with(
        action_bounds=ActionBounds("clip", (-1.7e308, 0.0, -1.0), (1.0, 1.7e308, 1.0), "float64"),
    ),
}


def run(format: str, path: Path, observations: NDArray[np.float32]) -> Mapping[str, Any]:
    if format == "onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, {"observations": observations}), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        actions, second = torch.jit.load(str(path))(torch.tensor(observations))
    return {"actions": actions.numpy(), "action_std": second.numpy(), "log_probs": second.numpy()}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", AGENTS)
def test_the_file_acts_as_the_agent_does(tmp_path: Path, format: str, kind: str) -> None:
    agent = AGENTS[kind]
    rng = np.random.default_rng(0)
    observations = rng.normal(0.0, 10.0, (1000, 5)).astype(np.float32)
    exported = agent.export(tmp_path / "policy", format=format)
    assert exported.difference is not None
    assert exported.difference < 1e-4
    found = run(format, exported.path, observations)
    expected = agent.act(observations)
    if kind == "discrete":
        assert found["actions"].dtype == np.int64
        logits = np.sort(agent.policy.forward(observations), axis=1)
        clear = logits[:, -1] - logits[:, -2] > 1e-4
        assert clear.sum() > 900
        np.testing.assert_array_equal(found["actions"][clear], expected[clear])
        assert len(set(found["actions"])) == 3
        np.testing.assert_allclose(np.exp(found["log_probs"]).sum(axis=1), 1.0, rtol=1e-4)
    else:
        np.testing.assert_allclose(found["actions"], expected, rtol=1e-4, atol=1e-4)
        zeros = np.zeros((20_000, 5), np.float32)
        sampled = make_sampler(agent.policy, 1, len(zeros), rng).act(0, zeros)
        noise = (sampled - agent.policy.forward(zeros)) * agent.spec.action_map.factor
        np.testing.assert_allclose(noise.std(axis=0), found["action_std"], rtol=0.03)
    shapes = {name: found[name].shape for name in exported.outputs}
    assert [len(shape) for shape in shapes.values()] == [
        text.count(",") + 1 - text.count(",)") for text in exported.outputs.values()
    ]


@pytest.mark.parametrize("kind", AGENTS)
def test_a_saved_policy_acts_alike_with_the_documented_pytorch(tmp_path: Path, kind: str) -> None:
    agent = AGENTS[kind]
    agent.save(tmp_path / "policy")
    names: dict[str, Any] = {}
    exec(python_block("evaluation.md", "safetensors.torch"), names)
    observations = np.random.default_rng(0).normal(0.0, 10.0, (200, 5)).astype(np.float32)
    found = names["load_with_pytorch"](tmp_path / "policy")(torch.from_numpy(observations)).numpy()
    expected = agent.act(observations)
    assert found.shape == expected.shape
    if agent.spec.discrete:
        assert (found == expected).mean() > 0.98  # two logits may be equal up to rounding
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_observations_are_clipped_as_in_training(tmp_path: Path) -> None:
    agent = AGENTS["tanh"]
    far, farther = (np.full((1, 5), size, np.float32) for size in (1e3, 1e4))
    found = [
        run("onnx", agent.export(tmp_path / "a.onnx").path, each)["actions"]
        for each in (far, farther)
    ]
    np.testing.assert_array_equal(*found)


def test_the_suffix_decides_the_format(tmp_path: Path) -> None:
    agent = AGENTS["tanh"]
    assert agent.export(tmp_path / "a.onnx").format == "onnx"
    assert agent.export(str(tmp_path / "a.pt")).format == "torchscript"
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"), full_check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.pt"]


@pytest.mark.parametrize(
    ("name", "format", "error", "message"),
    [
        ("policy.zip", None, UserError, "must end in .onnx, or in .pt for TorchScript"),
        ("policy.onnx", "tflite", UserError, "'tflite' is not known: there are onnx and torchscr"),
        ("missing/policy.onnx", None, RunDirError, "name a file in an existing directory"),
        (".", "onnx", RunDirError, "name a file in an existing directory"),
    ],
)
def test_a_wrong_file_or_format_is_refused(
    tmp_path: Path, name: str, format: str | None, error: type[UserError], message: str
) -> None:
    with pytest.raises(error, match=message):
        AGENTS["tanh"].export(tmp_path / name, format=format)
    assert not list(tmp_path.iterdir())


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)


def test_without_the_packages_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        without(patch, "onnxruntime")
        assert AGENTS["tanh"].export(tmp_path / "a.onnx").difference is None
    without(monkeypatch, "onnx")
    with pytest.raises(UserError, match=r"pip install 'maml-ray\[export\]'"):
        AGENTS["tanh"].export(tmp_path / "b.onnx")
    assert AGENTS["tanh"].export(tmp_path / "b.pt").difference is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.pt"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["tanh", "discrete"])
def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, kind: str
) -> None:
    agent = AGENTS[kind]
    path = tmp_path / "policy"
    path.write_text("the file of yesterday")
    monkeypatch.setattr(model_export, "LIMIT", 5.0)
    with pytest.raises(UserError, match=r"computes other (actions|log_probs) than the policy"):
        agent.export(path, format=format)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [
        ("policy", "the file of yesterday")
    ]
