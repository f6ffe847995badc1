"""Run steps of MuJoCo simulations in one kernel: the policy, the physics and the observations.

MuJoCo's functions are called by their addresses, and states are read and written in MuJoCo's own
memory: nothing returns to Python between two steps. Addresses are arguments, since a kernel that
contains one would have to be compiled in each process.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from maml_ray.envs.mujoco_state import Selection
from maml_ray.envs.vector_env import Float64
from maml_ray.kernels.jit import jit
from maml_ray.kernels.policy_forward import Float32, PolicyKernel, act

Addresses = NDArray[np.int64]


class SimulationPointers(NamedTuple):
    """Addresses, in this process, of K simulations of one model; valid while they exist.

    Attributes:
        step: of MuJoCo's ``mj_step``.
        after: of a function that is called after each control step; 0 for none.
        model: of the ``mjModel``.
        data: (K,) of each ``mjData``.
        controls: (K,) of their ``ctrl``.
        fields: (K, F) of the arrays that make up a state's row.
        sizes: (F,) their lengths.
        frame_skip: physics steps of a control step.
    """

    step: int
    after: int
    model: int
    data: Addresses
    controls: Addresses
    fields: Addresses
    sizes: Addresses
    frame_skip: int


class StepArrays(NamedTuple):
    """Arrays of T steps of K simulations.

    Attributes:
        rows: (T + 1, K, R) states, before the first step and after each.
        observations: (T + 1, K, D) of these states.
        actions: (T, K, A) as recorded.
        env_actions: (T, K, A) the environment's.
    """

    rows: Float64
    observations: Float32
    actions: Float32
    env_actions: Float32

    def part(self, start: int, end: int) -> StepArrays:
        """Return views of some steps."""
        points, steps = slice(start, end + 1), slice(start, end)
        return StepArrays(
            self.rows[points],
            self.observations[points],
            self.actions[steps],
            self.env_actions[steps],
        )


def get_pointers(
    model: Any,
    simulations: Sequence[Any],
    fields: Sequence[Sequence[NDArray[Any]]],
    frame_skip: int,
    *,
    contact_forces: bool,
) -> SimulationPointers | None:
    """Return the addresses of simulations; None if the installed MuJoCo hides them.

    Args:
        model: of all.
        simulations: K instances of ``MjData``.
        fields: of each simulation, the contiguous arrays of its state's row, in its memory.
        frame_skip: physics steps of a control step.
        contact_forces: compute contact forces after each control step.
    """
    step = function_address("mj_step")
    after = function_address("mj_rnePostConstraint") if contact_forces else 0
    is_double = all(array.dtype == np.float64 for row in fields for array in row)
    if step is None or after is None or not is_double or not hasattr(model, "_address"):
        return None
    return SimulationPointers(
        step=step,
        after=after,
        model=model._address,
        data=np.array([each._address for each in simulations], np.int64),
        controls=np.array([each.ctrl.ctypes.data for each in simulations], np.int64),
        fields=np.array([[each.ctypes.data for each in row] for row in fields], np.int64),
        sizes=np.array([each.size for each in fields[0]], np.int64),
        frame_skip=frame_skip,
    )


@cache
def function_address(name: str) -> int | None:
    """Return the address of a function in the library of the ``mujoco`` package, if found."""
    no_load = getattr(os, "RTLD_NOLOAD", 0)  # find the loaded copy; Windows lacks the flag
    for pattern in ("libmujoco*.so*", "libmujoco*.dylib", "mujoco*.dll"):
        for path in sorted(Path(mujoco.__file__).parent.glob(pattern)):
            try:
                function = getattr(ctypes.CDLL(str(path), mode=ctypes.DEFAULT_MODE | no_load), name)
            except (OSError, AttributeError):
                continue
            return ctypes.cast(function, ctypes.c_void_p).value
    return None


@jit
def run_steps(
    simulations: SimulationPointers,
    indices: NDArray[np.int64],
    policy: PolicyKernel,
    selection: Selection,
    scratch: Float32,
    arrays: StepArrays,
) -> None:
    """Run T control steps of some of K simulations.

    MuJoCo's Python functions turn its fatal errors (out of memory) into exceptions. Here such an
    error ends the process; a rollout actor that dies is replaced.

    Args:
        simulations: their addresses.
        indices: of the simulations to step.
        policy: acts, with the noise (T, K, A) of these steps.
        selection: what is observed of a state.
        scratch: of the policy's network, overwritten.
        arrays: overwritten but for the first state and observation.
    """
    rows, observations, actions, env_actions = arrays
    for step in range(len(actions)):
        act(policy, step, observations[step], scratch, actions[step], env_actions[step])
        for i in indices:
            control = _float64_array(simulations.controls[i], actions.shape[2])
            for j in range(actions.shape[2]):
                control[j] = env_actions[step, i, j]
            for _ in range(simulations.frame_skip):
                _call(simulations.step, simulations.model, simulations.data[i])
            if simulations.after != 0:
                _call(simulations.after, simulations.model, simulations.data[i])
            _read_row(simulations, i, rows[step + 1, i])
            _observe(selection, rows[step + 1, i], observations[step + 1, i])


@jit
def _read_row(simulations: SimulationPointers, i: int, row: Float64) -> None:
    start = 0
    for field in range(len(simulations.sizes)):
        size = simulations.sizes[field]
        values = _float64_array(simulations.fields[i, field], size)
        for j in range(size):
            row[start + j] = values[j]
        start += size


@jit
def _observe(selection: Selection, row: Float64, observation: Float32) -> None:
    for j in range(len(observation)):
        # NaN propagates with this order of the arguments.
        value = max(row[selection.columns[j]], selection.low[j])
        observation[j] = min(value, selection.high[j])


@jit
def _float64_array(address: int, count: int) -> Any:
    """View ``count`` float64 numbers at ``address``, to read and to write."""
    return carray(_void_pointer(address), (count,), np.float64)


@intrinsic  # type: ignore[untyped-decorator]
def _void_pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _call(typing: Any, function: Any, first: Any, second: Any) -> Any:
    """Call the function at an address with two pointers."""
    pointer = cgutils.voidptr_t
    function_type = ir.FunctionType(ir.VoidType(), [pointer, pointer]).as_pointer()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function, *addresses = arguments
        pointers = [builder.inttoptr(address, pointer) for address in addresses]
        builder.call(builder.inttoptr(function, function_type), pointers)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
