"""Step K MuJoCo simulations of one model, one by one from Python or many steps in a kernel.

Simulations share the model and have an ``MjData`` each. Each keeps its solver warm start, which
``mujoco.rollout`` called step by step would drop: trajectories therefore equal, to the last bit,
those of single Gymnasium environments with the same seeds and actions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from maml_ray.envs import mujoco_kernel
from maml_ray.envs.mujoco_kernel import StepArrays
from maml_ray.envs.mujoco_state import Selection, StateLayout
from maml_ray.envs.vector_env import Bool, Float64
from maml_ray.kernels.policy_forward import PolicyKernel, act

Field = Callable[[Any], NDArray[np.float64]]
"""Returns a live array of an ``MjData``, such as ``lambda data: data.xpos[1]``."""

_FULL_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_RESET_WARNINGS = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)


class Simulations:
    """K simulations.

    Args:
        model: of all.
        count: K.
        frame_skip: physics steps of a control step.
        tracked: further fields of a state by name, beside positions and velocities.
        contact_forces: compute contact forces after each control step: ``mj_step`` leaves them out.

    Attributes:
        model: of all.
        data: an ``MjData`` of each.
        layout: of a state's row, of R numbers.

    Raises:
        ValueError: a tracked field is not a contiguous array.
    """

    def __init__(
        self,
        model: Any,
        count: int,
        frame_skip: int,
        tracked: Mapping[str, Field],
        *,
        contact_forces: bool = False,
    ) -> None:
        self.data = [mujoco.MjData(model) for _ in range(count)]
        self.model = model
        # Not a bound method, by which this object would hold itself: the memory of simulations that
        # nobody uses would wait for Python's search for cycles, rare in a large process.
        self._step = partial(_step, model, frame_skip, contact_forces)
        # Views into the simulations, created once: attribute access on MjData is slow.
        self._controls = [data.ctrl for data in self.data]
        fields: dict[str, Field] = {
            "qpos": lambda data: data.qpos,
            "qvel": lambda data: data.qvel,
            **tracked,
        }
        self._warnings = [_reset_warnings(data) for data in self.data]
        self._fields = [[field(data) for field in fields.values()] for data in self.data]
        for name, array in zip(fields, self._fields[0], strict=True):
            if not array.flags.c_contiguous:  # what is read would be a copy, made once
                raise ValueError(f"the field {name} must be a contiguous array of MjData")
        shapes = (array.shape for array in self._fields[0])
        self.layout = StateLayout(dict(zip(fields, shapes, strict=True)))
        self._flat_fields = [array.reshape(-1) for row in self._fields for array in row]
        self._pointers = mujoco_kernel.get_pointers(
            model, self.data, self._fields, frame_skip, contact_forces=contact_forces
        )

    def advance(self, indices: Iterable[int], env_actions: NDArray[Any]) -> None:
        """Run a control step of each simulation in ``indices`` by its row of actions (K, A)."""
        for i in indices:
            self._controls[i][:] = env_actions[i]
            self._step(self.data[i])

    def read(self, rows: Float64) -> None:
        """Copy the states of all into ``rows`` (K, R)."""
        np.concatenate(self._flat_fields, out=rows.reshape(-1))

    def run_steps(
        self,
        indices: NDArray[np.int64],
        policy: PolicyKernel,
        selection: Selection,
        arrays: StepArrays,
    ) -> None:
        """Run T control steps of some simulations: see :func:`mujoco_kernel.run_steps`."""
        scratch = policy.network.make_scratch(len(self.data))
        if self._pointers is not None:
            mujoco_kernel.run_steps(self._pointers, indices, policy, selection, scratch, arrays)
            return
        rows, observations, actions, env_actions = arrays
        moving = indices.tolist()
        for step in range(len(actions)):
            act(policy, step, observations[step], scratch, actions[step], env_actions[step])
            self.advance(moving, env_actions[step].astype(np.float64))
            self.read(rows[step + 1])
            observations[step + 1] = selection.observe(rows[step + 1])

    def failed(self) -> Bool:
        """Return which simulations (K,) MuJoCo has reset by itself since their last reset.

        It does so silently if a state or an acceleration is NaN or beyond its limit; observations
        after that are finite and belong to another episode.
        """
        return np.array([_has_failed(warnings) for warnings in self._warnings])

    def save(self, indices: Iterable[int]) -> dict[int, Float64]:
        """Return the whole states of some simulations, to replay from."""
        size = mujoco.mj_stateSize(self.model, _FULL_STATE)
        saved = {i: np.empty(size) for i in indices}
        for i, state in saved.items():
            mujoco.mj_getState(self.model, self.data[i], state, _FULL_STATE)
        return saved

    def replay_fails(self, state: Float64, env_actions: NDArray[Any]) -> bool:
        """Return whether MuJoCo resets a simulation during actions (n, A) from a saved state."""
        data = mujoco.MjData(self.model)
        mujoco.mj_setState(self.model, data, state, _FULL_STATE)
        for action in env_actions:
            data.ctrl[:] = action
            self._step(data)
        return _has_failed(_reset_warnings(data))


def _step(model: Any, frame_skip: int, contact_forces: bool, data: Any) -> None:
    """Run a control step of one simulation."""
    mujoco.mj_step(model, data, frame_skip)
    if contact_forces:
        mujoco.mj_rnePostConstraint(model, data)


def _reset_warnings(data: Any) -> list[Any]:
    """Return the live counters of MuJoCo's own resets."""
    return [data.warning[warning] for warning in _RESET_WARNINGS]


def _has_failed(warnings: list[Any]) -> bool:
    return any(warning.number for warning in warnings)
