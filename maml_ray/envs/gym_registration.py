"""The environments under Gymnasium's names: ``gymnasium.make("maml_ray/AntVelocity-v0")``.

Each is named by its class, and told by its module's name alone: nothing is imported until an
environment is made.
"""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym

ENVIRONMENTS: Mapping[str, tuple[str, int]] = {
    "HalfCheetahBackward": ("half_cheetah", 200),
    "HalfCheetahDirection": ("half_cheetah", 200),
    "HalfCheetahVelocity": ("half_cheetah", 200),
    "AntDirection": ("ant", 200),
    "AntVelocity": ("ant", 200),
    "Walker2dRandomDynamics": ("random_dynamics", 200),
    "HopperRandomDynamics": ("random_dynamics", 200),
    "PointNavigation": ("point_navigation", 100),
}
"""Class of the single environment: its module, and the steps of an episode in the papers."""


def env_id(name: str) -> str:
    """Gymnasium's id of the environment class ``name``."""
    return f"maml_ray/{name}-v0"


def register() -> None:
    """Make the environments known to ``gymnasium.make`` and ``make_vec``; done on import."""
    for name, (module, steps) in ENVIRONMENTS.items():
        if env_id(name) not in gym.registry:
            gym.register(
                env_id(name),
                entry_point=f"maml_ray.tasks.{module}:{name}",
                vector_entry_point=f"maml_ray.tasks.{module}:{name}Vector",
                max_episode_steps=steps,
            )


register()
