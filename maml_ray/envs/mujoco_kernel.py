"""Whole episodes of MuJoCo simulations as one compiled loop, from the policy to the physics.

MuJoCo's step is called by its address, and the simulations are read and written where MuJoCo keeps
them: between two steps there is nothing of Python. An address is an argument like any other, since
a loop with one in it would have to be compiled anew in each process.
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
from maml_ray.kernels.policy_forward import Float32, PolicyKernel, evaluate

Addresses = NDArray[np.int64]


class Simulations(NamedTuple):
    """Where in this process K simulations of one model are: good while they live.

    Attributes:
        step: address of MuJoCo's ``mj_step``.
        model: of the model.
        data: (K,) of the simulations.
        controls, positions, velocities: (K,) of their ``ctrl``, ``qpos`` and ``qvel``.
        sizes: numbers in each of those three.
        frame_skip: steps of the physics in one of the environment.
    """

    step: int
    model: int
    data: Addresses
    controls: Addresses
    positions: Addresses
    velocities: Addresses
    sizes: tuple[int, int, int]
    frame_skip: int


def located(model: Any, simulations: Sequence[Any], frame_skip: int) -> Simulations | None:
    """Where ``simulations`` of ``model`` are; None where that cannot be found out."""
    step, double = step_address(), simulations[0].qpos.dtype == np.float64
    if step is None or not double or not hasattr(model, "_address"):
        return None

    def addresses(name: str) -> Addresses:
        return np.array([getattr(each, name).ctypes.data for each in simulations], np.int64)

    return Simulations(
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
    """Of ``mj_step`` in the library that the ``mujoco`` package has loaded; None if not found."""
    loaded = getattr(os, "RTLD_NOLOAD", 0)  # never a second one, where the system can promise that
    for pattern in ("libmujoco*.so*", "libmujoco*.dylib", "mujoco*.dll"):
        for path in sorted(Path(mujoco.__file__).parent.glob(pattern)):
            try:
                step = ctypes.CDLL(str(path), mode=ctypes.DEFAULT_MODE | loaded).mj_step
            except (OSError, AttributeError):
                continue
            return ctypes.cast(step, ctypes.c_void_p).value
    return None


@jit
def play(
    simulations: Simulations,
    player: PolicyKernel,
    rooms: Float32,
    first: int,
    states: Float64,
    observed: Float32,
    actions: Float32,
) -> None:
    """T steps of K simulations.

    MuJoCo's Python functions turn its fatal errors (there is no memory left) into exceptions; here
    such an error ends the process. An actor that has died is replaced.

    Args:
        simulations: where they are.
        player: who acts.
        rooms: for the player's network to work in.
        first: of a state, the first number that is observed.
        states: (T + 1, K, nq + nv) positions and velocities, to be filled in.
        observed: (T + 1, K, D) observations, likewise.
        actions: (T, K, A) as recorded, likewise.
    """
    steps, count, size = actions.shape
    for i in range(count):
        _look(simulations, i, first, states[0, i], observed[0, i])
    for step in range(steps):
        evaluate(player.perceptron, observed[step], rooms, actions[step])
        for i in range(count):
            control = _numbers(simulations.controls[i], simulations.sizes[0])
            for j in range(size):
                actions[step, i, j] += player.deviations[step, i, j]
                control[j] = actions[step, i, j] * player.scale
            for _ in range(simulations.frame_skip):
                _call(simulations.step, simulations.model, simulations.data[i])
            _look(simulations, i, first, states[step + 1, i], observed[step + 1, i])


@jit
def _look(simulations: Simulations, i: int, first: int, state: Float64, seen: Float32) -> None:
    _, positions, velocities = simulations.sizes
    position = _numbers(simulations.positions[i], positions)
    velocity = _numbers(simulations.velocities[i], velocities)
    for j in range(positions):
        state[j] = position[j]
    for j in range(velocities):
        state[positions + j] = velocity[j]
    for j in range(len(seen)):
        seen[j] = state[first + j]


@jit
def _numbers(address: int, count: int) -> Any:
    """What MuJoCo keeps at ``address``: ``count`` float64 numbers, to be read and written."""
    return carray(_pointer(address), (count,), np.float64)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _call(typing: Any, function: Any, one: Any, other: Any) -> Any:
    """Call the function of two pointers at an address."""
    pointer = cgutils.voidptr_t
    kind = ir.FunctionType(ir.VoidType(), [pointer, pointer]).as_pointer()

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function, *given = arguments
        pointers = [builder.inttoptr(each, pointer) for each in given]
        builder.call(builder.inttoptr(function, kind), pointers)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
