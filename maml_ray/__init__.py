"""maml_ray: meta-reinforcement learning on Ray.

The public API. Ray is imported by :func:`train` and :func:`tune_objective` alone, when they are
first asked for: a trained policy can be loaded, adapted and evaluated on a machine without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maml_ray.agent import Agent
    from maml_ray.config import Settings, SettingsError, load_settings
    from maml_ray.distributed.tuning import tune_objective
    from maml_ray.evaluation import Evaluation, evaluate
    from maml_ray.evaluation_run import RunResult
    from maml_ray.loading import load
    from maml_ray.notebook import show_video
    from maml_ray.policy_folder import save_policy
    from maml_ray.runs import train
    from maml_ray.tasks.distribution import Task, TaskDistribution
    from maml_ray.trajectories import Trajectories
    from maml_ray.video import record_video

import maml_ray.tasks.registration  # noqa: F401  (registers the environments with Gymnasium)
from maml_ray.versions import own_version

_HOMES = {
    "Agent": "agent",
    "Evaluation": "evaluation",
    "RunResult": "evaluation_run",
    "Settings": "config",
    "SettingsError": "config",
    "Task": "tasks.distribution",
    "TaskDistribution": "tasks.distribution",
    "Trajectories": "trajectories",
    "evaluate": "evaluation",
    "load": "loading",
    "load_settings": "config",
    "record_video": "video",
    "save_policy": "policy_folder",
    "show_video": "notebook",
    "train": "runs",
    "tune_objective": "distributed.tuning",
}

__version__ = own_version()
__all__ = [
    "Agent",
    "Evaluation",
    "RunResult",
    "Settings",
    "SettingsError",
    "Task",
    "TaskDistribution",
    "Trajectories",
    "evaluate",
    "load",
    "load_settings",
    "record_video",
    "save_policy",
    "show_video",
    "train",
    "tune_objective",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'maml_ray' has no attribute {name!r}")
    return getattr(import_module(f"maml_ray.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
