"""Roll out whole episodes of MuJoCo simulations in one kernel: the policy and the physics.

MuJoCo's step function is called by its address, and states are read and written in MuJoCo's own
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

from maml_ray.envs.vector_env import Float64
from maml_ray.kernels.jit import jit
from maml_ray.kernels.policy_forward import Float32, PolicyKernel, mlp_forward

Addresses = NDArray[np.int64]


class SimulationPointers(NamedTuple):
    """Addresses, in this process, of K simulations of one model; valid while they exist.

    Attributes:
        step: of MuJoCo's ``mj_step``.
        model: of the ``mjModel``.
        data: (K,) of each ``mjData``.
        controls, positions, velocities: (K,) of their ``ctrl``, ``qpos`` and ``qvel``.
        sizes: lengths of those three arrays.
        frame_skip: physics steps of a control step.
    """

    step: int
    model: int
    data: Addresses
    controls: Addresses
    positions: Addresses
    velocities: Addresses
    sizes: tuple[int, int, int]
    frame_skip: int


def get_pointers(
    model: Any, simulations: Sequence[Any], frame_skip: int
) -> SimulationPointers | None:
    """Return the addresses of ``simulations``; None if the installed MuJoCo hides them."""
    step, is_double = step_address(), simulations[0].qpos.dtype == np.float64
    if step is None or not is_double or not hasattr(model, "_address"):
        return None

    def addresses(name: str) -> Addresses:
        return np.array([getattr(each, name).ctypes.data for each in simulations], np.int64)

    return SimulationPointers(
        step=step,
        model=model._address,
        data=np.array([each._address for each in simulations], np.int64),
        controls=addresses("ctrl"),
        positions=addresses("qpos"),
        velocities=addresses("qvel"),
        sizes=(model.nu, model.nq, model.nv),
        frame_skip=frame_skip,
    )


@cache
def step_address() -> int | None:
    """Return the address of ``mj_step`` in the library of the ``mujoco`` package, if found."""
    no_load = getattr(os, "RTLD_NOLOAD", 0)  # find the loaded copy; Windows lacks the flag
    for pattern in ("libmujoco*.so*", "libmujoco*.dylib", "mujoco*.dll"):
        for path in sorted(Path(mujoco.__file__).parent.glob(pattern)):
            try:
                step = ctypes.CDLL(str(path), mode=ctypes.DEFAULT_MODE | no_load).mj_step
            except (OSError, AttributeError):
                continue
            return ctypes.cast(step, ctypes.c_void_p).value
    return None


@jit
def rollout(
    simulations: SimulationPointers,
    policy: PolicyKernel,
    scratch: Float32,
    first: int,
    states: Float64,
    observations: Float32,
    actions: Float32,
) -> None:
    """Run T control steps of K simulations.

    MuJoCo's Python functions turn its fatal errors (out of memory) into exceptions. Here such an
    error ends the process; a rollout actor that dies is replaced.

    Args:
        simulations: their addresses.
        policy: acts, with its noise.
        scratch: of the policy's network, overwritten.
        first: index within a state of the first number that is observed.
        states: (T + 1, K, nq + nv) positions and velocities, overwritten.
        observations: (T + 1, K, D), overwritten.
        actions: (T, K, A) as recorded, overwritten.
    """
    steps, count, size = actions.shape
    to_env = policy.action_map
    for i in range(count):
        _read_state(simulations, i, first, states[0, i], observations[0, i])
    for step in range(steps):
        mlp_forward(policy.network, observations[step], scratch, actions[step])
        for i in range(count):
            control = _float64_array(simulations.controls[i], simulations.sizes[0])
            for j in range(size):
                actions[step, i, j] += policy.noise[step, i, j]
                value = actions[step, i, j] * to_env.factor[j] + to_env.offset[j]
                # NaN propagates with this order of the arguments.
                control[j] = max(min(value, to_env.high[j]), to_env.low[j])
            for _ in range(simulations.frame_skip):
                _call(simulations.step, simulations.model, simulations.data[i])
            _read_state(simulations, i, first, states[step + 1, i], observations[step + 1, i])


@jit
def _read_state(
    simulations: SimulationPointers, i: int, first: int, state: Float64, observation: Float32
) -> None:
    _, positions, velocities = simulations.sizes
    position = _float64_array(simulations.positions[i], positions)
    velocity = _float64_array(simulations.velocities[i], velocities)
    for j in range(positions):
        state[j] = position[j]
    for j in range(velocities):
        state[positions + j] = velocity[j]
    for j in range(len(observation)):
        observation[j] = state[first + j]


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
