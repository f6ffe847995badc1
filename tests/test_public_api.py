from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import maml_ray

WITHOUT_RAY = """
import sys
sys.modules["ray"] = None  # importing it now raises ImportError
import gymnasium, maml_ray
from maml_ray.evaluation.agent import Agent
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import policy_spec
settings = maml_ray.load_settings(overrides=["task.horizon=5", "meta_batch.episodes=2"])
spec = policy_spec(settings)
published = MetaLearner(settings, spec).publish()
agent = Agent(settings, spec, dict(published.values), published.normalizer)
adapted = agent.adapt(agent.collect_support())
figures = maml_ray.evaluate(adapted, tasks=1, episodes=2)
assert figures.row(1, "mean").episodes == 2
assert gymnasium.make("maml_ray/HalfCheetahBackward-v0").reset(seed=0)
"""


def test_a_policy_adapts_and_is_evaluated_on_a_machine_without_ray() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(maml_ray.__file__).read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"maml_ray.{module}" for name, module in maml_ray._MODULES.items()}


def test_every_public_name_is_there_and_documented() -> None:
    assert maml_ray.__all__ == sorted(maml_ray.__all__)
    assert set(maml_ray.__all__) == set(maml_ray._MODULES)
    assert [name for name in dir(maml_ray) if not name.startswith("_")] == maml_ray.__all__
    for name in maml_ray.__all__:
        assert getattr(maml_ray, name).__doc__, name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = maml_ray.no_such_name
