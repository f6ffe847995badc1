"""maml_ray: meta-reinforcement learning on Ray.

This module is the public API. Names are imported on first use: only :func:`train` and
:func:`tune_objective` import Ray, so a trained policy can be loaded, adapted and evaluated on a
machine without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maml_ray.config.loading import load_settings
    from maml_ray.config.settings import Settings, SettingsError
    from maml_ray.evaluation.agent import Agent
    from maml_ray.evaluation.evaluate import evaluate
    from maml_ray.evaluation.loading import load
    from maml_ray.evaluation.results import Evaluation
    from maml_ray.evaluation.video import record_video, show_video
    from maml_ray.persistence.records import Observer
    from maml_ray.reporting.live_plot import LivePlot
    from maml_ray.rollouts.task_check import check_tasks
    from maml_ray.rollouts.trajectories import Trajectories
    from maml_ray.runs.evaluate import RunResult
    from maml_ray.runs.train import train
    from maml_ray.runs.tune import tune_objective
    from maml_ray.tasks.task import Task, TaskDistribution

import maml_ray.tasks.registry  # noqa: F401  (registers the environments with Gymnasium)
from maml_ray.common.versions import own_version
from maml_ray.envs.opengl import import_mujoco

import_mujoco()  # before an environment does, which could not if MUJOCO_GL is wrong

_MODULES = {
    "Agent": "evaluation.agent",
    "Evaluation": "evaluation.results",
    "LivePlot": "reporting.live_plot",
    "Observer": "persistence.records",
    "RunResult": "runs.evaluate",
    "Settings": "config.settings",
    "SettingsError": "config.settings",
    "Task": "tasks.task",
    "TaskDistribution": "tasks.task",
    "Trajectories": "rollouts.trajectories",
    "check_tasks": "rollouts.task_check",
    "evaluate": "evaluation.evaluate",
    "load": "evaluation.loading",
    "load_settings": "config.loading",
    "record_video": "evaluation.video",
    "show_video": "evaluation.video",
    "train": "runs.train",
    "tune_objective": "runs.tune",
}

__version__ = own_version()
__all__ = [
    "Agent",
    "Evaluation",
    "LivePlot",
    "Observer",
    "RunResult",
    "Settings",
    "SettingsError",
    "Task",
    "TaskDistribution",
    "Trajectories",
    "check_tasks",
    "evaluate",
    "load",
    "load_settings",
    "record_video",
    "show_video",
    "train",
    "tune_objective",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'maml_ray' has no attribute {name!r}")
    return getattr(import_module(f"maml_ray.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
