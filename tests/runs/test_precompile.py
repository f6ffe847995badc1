"""After precompilation a run compiles nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maml_ray.config.loading import load_settings
from maml_ray.envs import mujoco_kernel
from maml_ray.kernels import fisher, inner_step, meta_gradient, mlp, policy_forward
from maml_ray.kernels.jit import mark_precompiled
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.runs.precompile import compile_ahead, precompile


def signatures() -> dict[str, int]:
    """Return the number of compiled signatures of each kernel."""
    modules = (
        mlp,
        mujoco_kernel,
        policy_forward,
        inner_step,
        meta_gradient,
        fisher,
    )
    kernels: dict[str, Any] = {
        f"{module.__name__}.{name}": kernel
        for module in modules
        for name, kernel in vars(module).items()
        if hasattr(kernel, "signatures")
    }
    return {name: len(kernel.signatures) for name, kernel in kernels.items()}


def test_a_run_compiles_nothing_more() -> None:
    precompile()
    before = signatures()
    assert before["maml_ray.kernels.meta_gradient.query_vjp"] >= 1
    assert before["maml_ray.envs.mujoco_kernel.run_steps"] >= 1
    for other in (
        ["task.name=half-cheetah-direction", "policy.hidden_sizes=[8, 4, 4]"],
        ["task.name=ant-direction", "policy.activation=relu", "inner.steps=2"],
        ["outer.objective=trpo", "inner.learn_inner_rates=true"],
        ["task.name=point-navigation", "policy.normalize_observations=false"],
    ):
        small = ["task.horizon=3", "meta_batch.tasks=1", "meta_batch.episodes=2"]
        settings = load_settings(overrides=[*small, *other])
        worker = RolloutWorker(settings)
        learner = MetaLearner(settings, worker.spec)
        learner.warm_up()
        (task,) = sample_tasks(settings, worker.tasks, 0)
        rollouts, _ = worker.roll_out(learner.collection_params(), Assignment(0, 0, task, 0))
        learner.update([rollouts])
        worker.close()
    assert signatures() == before


def test_a_learner_on_a_cpu_does_not_import_pytorchs_compiler() -> None:
    # It takes more than a second of every start, and compiles nothing here.
    program = """
import sys
from maml_ray.runs.precompile import precompile
precompile()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Whatever is reported, on a machine that has compiled nothing."""
    monkeypatch.setattr("maml_ray.kernels.jit._CACHE_DIR", str(tmp_path))
    return []


def test_a_machine_compiles_ahead_once(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **keywords: Any) -> None:
        assert command[1:] == ["-m", "maml_ray.runs.precompile"]
        mark_precompiled()

    monkeypatch.setattr("maml_ray.runs.precompile.subprocess.run", run)
    for _ in range(2):
        compile_ahead(lines.append, lines.append)
    status, event = lines
    assert status.startswith("compiling kernels, once for this machine")
    assert event.startswith("compiled kernels, once for this machine, in ")


def test_a_run_goes_on_if_compiling_ahead_fails(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **keywords: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="Traceback\nOSError: no space\n")

    monkeypatch.setattr("maml_ray.runs.precompile.subprocess.run", run)
    compile_ahead(lines.append, lines.append)
    assert lines[-1] == "warning: compiling kernels failed: OSError: no space"


def test_what_cannot_be_stored_is_reported(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maml_ray.kernels.jit._CACHE_DIR", None)
    compile_ahead(lines.append, lines.append)
    (warning,) = lines
    assert "set NUMBA_CACHE_DIR" in warning
