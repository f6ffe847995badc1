"""Set-up shared by all tests: off-screen rendering, one thread, small settings."""

from __future__ import annotations

import ctypes.util
import functools
import os
import sys
from collections.abc import Iterator

if "DISPLAY" not in os.environ and ctypes.util.find_library("EGL"):
    os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported

import hypothesis
import pytest
import torch
import typer

from maml_ray.backends.autograd import AutogradBackend
from maml_ray.backends.base import Backend
from maml_ray.backends.compiled import CompiledBackend
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings

torch.set_num_threads(1)
# The first draw of a text strategy builds tables for a second or more: not a matter of health.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    max_examples=50,
    derandomize="FUZZ" not in os.environ,  # a long night looks elsewhere every time
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")
# Typer makes all commands anew, in 30 ms, at each of the thousand command lines in one process.
typer.main.get_command = functools.cache(typer.main.get_command)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use this process's Ray; others that start one are marked themselves."""
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")


@pytest.fixture(autouse=True)
def _only_marked_tests_start_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that has started Ray in this process without the mark."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and "ray" not in request.keywords:
        ray.shutdown()
        pytest.fail("this test starts Ray: mark it with pytest.mark.ray")


@pytest.fixture
def autograd_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute by autograd what the compiled kernels support, too, as on a GPU."""
    monkeypatch.setattr(CompiledBackend, "supports", lambda *settings: False)
    monkeypatch.setattr("maml_ray.backends.inner_step.supports_inner", lambda *settings: False)


@pytest.fixture(params=[CompiledBackend, AutogradBackend])
def backend_kind(request: pytest.FixtureRequest) -> type[Backend]:
    """Each backend in turn; learners and rollout workers use it where it supports the settings."""
    kind: type[Backend] = request.param
    if kind is AutogradBackend:
        request.getfixturevalue("autograd_only")
    return kind


@pytest.fixture
def small_settings() -> Settings:
    """Three tasks of two episodes and 20 steps, two inner steps."""
    return validate_settings(
        {
            "run": {"seed": 3, "iterations": 5},
            "task": {"horizon": 20},
            "policy": {"hidden_sizes": [8]},
            "meta_batch": {"tasks": 3, "episodes": 2},
            "inner": {"steps": 2, "learning_rate": 0.1},
            "outer": {"epochs": 2, "tasks_per_minibatch": None},
        }
    )
