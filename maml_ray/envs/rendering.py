"""Configure the rendering and the spaces of MuJoCo environments: camera, floor, display modes."""

from __future__ import annotations

import os
import sys
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box


def with_tracking_camera(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return ``kwargs`` of a MuJoCo environment with the tracking camera, unless they name one.

    An animal runs out of a fixed camera's view within a second.
    """
    return kwargs if "camera_id" in kwargs else {"camera_name": "track", **kwargs}


def configure_rendering(env: MujocoEnv) -> None:
    """Enlarge the floor of ``env``, list the render modes that work here, bound its observations.

    The bound is MuJoCo's limit on any coordinate (1e10, beyond which it resets the simulation):
    Gymnasium's checker warns of infinite spaces.
    """
    # The floor is endless to the physics, but drawn for 20 or 40 m to each side, which a good
    # runner leaves. Ten times the size, with checkers as large as before.
    floor = env.model.geom("floor")
    floor.size[:2] *= 10.0
    env.model.mat_texrepeat[floor.matid] *= 10.0
    modes = ["rgb_array", "depth_array", "rgbd_tuple"]
    if _has_display():  # without one, opening a window aborts the whole process
        modes.insert(0, "human")
    env.metadata = {**env.metadata, "render_modes": modes}
    limit = np.full(env._get_obs().shape, float(mujoco.mjMAXVAL))  # type: ignore[attr-defined]
    env.observation_space = Box(-limit, limit, dtype=np.float64)


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
