"""List the built-in task families and register their environments with Gymnasium.

Environments have ids such as ``maml_ray/AntVelocity-v0`` for ``gymnasium.make`` and ``make_vec``.
Families are listed by name: nothing is imported until one is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import gymnasium as gym


@dataclass(frozen=True)
class TaskFamily:
    """A built-in task family.

    Its module in :mod:`maml_ray.tasks.families` defines the single environment ``env``, its batch
    ``{env}Vector`` and its task distribution ``{env}Tasks``.

    Attributes:
        module: name of the module.
        env: class name of the single environment.
        max_episode_steps: length of an episode in the papers, Gymnasium's time limit.
        description: what its tasks are.
    """

    module: str
    env: str
    max_episode_steps: int
    description: str

    @property
    def path(self) -> str:
        """Path ``module:Class`` of the single environment."""
        return f"maml_ray.tasks.families.{self.module}:{self.env}"


TASK_FAMILIES: Mapping[str, TaskFamily] = {
    "half-cheetah-backward": TaskFamily(
        "half_cheetah", "HalfCheetahBackward", 200, "Half-cheetah: run backward. One task."
    ),
    "half-cheetah-direction": TaskFamily(
        "half_cheetah",
        "HalfCheetahDirection",
        200,
        "Half-cheetah: run forward or backward. Two tasks.",
    ),
    "half-cheetah-velocity": TaskFamily(
        "half_cheetah", "HalfCheetahVelocity", 200, "Half-cheetah: run at a target speed."
    ),
    "ant-direction": TaskFamily(
        "ant", "AntDirection", 200, "Ant: run forward or backward. Two tasks."
    ),
    "ant-velocity": TaskFamily("ant", "AntVelocity", 200, "Ant: run at a target speed."),
    "walker2d-random-dynamics": TaskFamily(
        "random_dynamics",
        "Walker2dRandomDynamics",
        200,
        "Walker2d with random masses, inertias, damping and friction.",
    ),
    "hopper-random-dynamics": TaskFamily(
        "random_dynamics",
        "HopperRandomDynamics",
        200,
        "Hopper with random masses, inertias, damping and friction.",
    ),
    "point-navigation": TaskFamily(
        "point_navigation", "PointNavigation", 100, "A point in the plane: move to a goal."
    ),
}
"""Families by the name in ``task.name``, which also accepts the path of a user's distribution."""


def env_id(name: str) -> str:
    """Return the Gymnasium id of the environment class ``name``."""
    return f"maml_ray/{name}-v0"


def register_envs() -> None:
    """Register all environments with ``gymnasium.make`` and ``make_vec``; runs on import."""
    for family in TASK_FAMILIES.values():
        if env_id(family.env) not in gym.registry:
            gym.register(
                env_id(family.env),
                entry_point=family.path,
                vector_entry_point=f"{family.path}Vector",
                max_episode_steps=family.max_episode_steps,
            )


register_envs()
