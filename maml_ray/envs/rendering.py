"""How a MuJoCo environment is shown and described: camera, floor, display, finite spaces."""

from __future__ import annotations

import os
import sys
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box


def follow(keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a MuJoCo environment with the tracking camera, unless they name another.

    A fixed camera would have lost a runner within a second.
    """
    return keywords if "camera_id" in keywords else {"camera_name": "track", **keywords}


def furnish(env: MujocoEnv) -> None:
    """Give ``env`` a floor that does not end, the display modes it has here, a finite space.

    The observation space is bounded by MuJoCo's own limit on any coordinate (1e10, beyond which
    it resets the simulation) in place of infinity, which Gymnasium's checker warns of.
    """
    # The floor is endless to the physics, but drawn for 20 or 40 m to each side: a good runner
    # gets to its edge. Ten times the size, and the chequers as large as before.
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
