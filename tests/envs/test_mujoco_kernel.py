"""Rollouts that call MuJoCo by its address equal those from Python, to the last bit."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maml_ray.envs import mujoco_kernel
from maml_ray.kernels.policy_forward import PolicyKernel
from maml_ray.rollouts.collector import collect
from maml_ray.tasks.half_cheetah import HalfCheetahBackwardVector
from tests.envs.comparison import assert_same_trajectories
from tests.envs.test_rollout import policy_for

SEED = np.random.SeedSequence(4)
HORIZON = 20


def batch(count: int = 3, **keywords: Any) -> HalfCheetahBackwardVector:
    return HalfCheetahBackwardVector(count, max_episode_steps=HORIZON, **keywords)


def policy_kernel(env: Any, scale: float = 1.0, steps: int = 5) -> PolicyKernel:
    noise = np.random.default_rng(0).standard_normal((steps, env.num_envs, 6)).astype(np.float32)
    policy = policy_for(env, scale)
    return PolicyKernel(policy.network, noise, policy.spec.action_map)


def empty_buffers(env: Any, steps: int = 5) -> tuple[Any, Any]:
    observations = np.zeros((steps + 1, env.num_envs, 17), np.float32)
    return observations, np.zeros((steps, env.num_envs, 6), np.float32)


@pytest.mark.parametrize("keywords", [{}, {"frame_skip": 2, "reset_noise_scale": 0.5}])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_without_mujocos_library_the_bits_are_the_same(
    keywords: dict[str, Any], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, stepped = batch(**keywords), batch(**keywords)
    policy = policy_for(compiled, scale)
    mine = collect(policy, compiled, HORIZON, SEED)
    assert mujoco_kernel.step_address() is not None  # or there would be nothing to compare
    monkeypatch.setattr(mujoco_kernel, "step_address", lambda: None)
    monkeypatch.setattr(mujoco_kernel, "rollout", lambda *_: pytest.fail("called"))
    theirs = collect(policy, stepped, HORIZON, SEED)
    assert_same_trajectories(mine, theirs)
    np.testing.assert_array_equal(compiled.positions, stepped.positions)
    np.testing.assert_array_equal(compiled.velocities, stepped.velocities)


def test_a_library_that_is_missing_or_is_another_has_no_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = mujoco_kernel.step_address.__wrapped__

    def missing(*_: Any, **__: Any) -> Any:
        raise OSError("not loaded")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find() is None
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert find() is None


def test_numbers_of_another_size_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    class Single:
        qpos = np.zeros(9, np.float32)

    env = batch()
    assert mujoco_kernel.get_pointers(env._model, env._simulations, 5) is not None
    assert mujoco_kernel.get_pointers(env._model, [Single()], 5) is None
    assert mujoco_kernel.get_pointers(object(), env._simulations, 5) is None


class BrokenAtFirst:
    """A batch in which a simulation's velocity is out of bounds after the first reset."""

    def __init__(self, env: Any) -> None:
        self._env, self._resets = env, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, **keywords: Any) -> Any:
        outcome = self._env.reset(**keywords)
        self._resets += 1
        if self._resets == 1:
            self._env._simulations[1].qvel[3] = 1e13
            self._env.read_states()
        return outcome


def test_a_simulation_that_breaks_during_a_rollout_is_drawn_again() -> None:
    env = batch()
    policy = policy_for(env, 1.0)
    undisturbed = collect(policy, env, HORIZON, SEED)
    actual = collect(policy, BrokenAtFirst(env), HORIZON, SEED)  # type: ignore[arg-type]
    assert (undisturbed.discarded, actual.discarded) == (0, 1)
    assert not env.failed().any()
    for kept in (0, 2):
        np.testing.assert_array_equal(actual.observations[kept], undisturbed.observations[kept])
    assert not np.array_equal(actual.observations[1], undisturbed.observations[1])


def test_mujocos_own_reset_is_seen_after_a_rollout() -> None:
    env = batch()
    env.reset(seed=0)
    env._simulations[1].qvel[3] = 1e13
    env.rollout(policy_kernel(env), *empty_buffers(env))
    np.testing.assert_array_equal(env.failed(), [False, True, False])


def test_noise_that_is_no_number_breaks_its_own_episode_and_nothing_else() -> None:
    env, policy = batch(), policy_kernel(batch())
    observations, actions = empty_buffers(env)
    env.reset(seed=0)
    env.rollout(policy, observations, actions)
    spoilt = policy._replace(noise=policy.noise.copy())
    spoilt.noise[2, 1] = np.nan
    other_observations, other_actions = empty_buffers(env)
    env.reset(seed=0)
    env.rollout(spoilt, other_observations, other_actions)
    assert np.isnan(other_actions[2, 1]).all()
    np.testing.assert_array_equal(other_observations[:, [0, 2]], observations[:, [0, 2]])
    np.testing.assert_array_equal(other_actions[:, [0, 2]], actions[:, [0, 2]])


@pytest.mark.parametrize("wrong", ["observations", "actions", "noise", "policy", "rows"])
def test_arrays_of_other_sizes_are_refused_before_anything_is_written(wrong: str) -> None:
    env, policy = batch(), policy_kernel(batch())
    observations, actions = empty_buffers(env)
    if wrong == "observations":
        observations = observations[:-1]
    elif wrong == "actions":
        actions = actions[:, :2].copy()
    elif wrong == "noise":
        policy = policy._replace(noise=policy.noise[:4])
    elif wrong == "rows":
        shifts = np.zeros((2, 8), np.float32)  # of a policy for two simulations
        policy = policy._replace(network=policy.network._replace(shifts=shifts))
    else:
        policy = policy._replace(network=policy.network._replace(sizes=np.array([16, 8, 6])))
    env.reset(seed=0)
    before = env.positions.copy()
    with pytest.raises(ValueError, match="must be of sizes"):
        env.rollout(policy, observations, actions)
    np.testing.assert_array_equal(env.positions, before)


FIRST_ROLLOUT = """
from tests.envs.test_mujoco_kernel import batch, policy_kernel, empty_buffers
from maml_ray.envs.mujoco_kernel import rollout
from maml_ray.kernels.policy_forward import mlp_forward
env = batch()
env.reset(seed=0)
env.rollout(policy_kernel(env), *empty_buffers(env))
policy_kernel(env).network.forward(empty_buffers(env)[0])
for kernel in (rollout, mlp_forward):
    print(sum(kernel.stats.cache_hits.values()), sum(kernel.stats.cache_misses.values()))
"""


def test_what_was_compiled_is_kept_for_the_next_process(tmp_path: Path) -> None:
    def cache_counts() -> list[str]:
        keywords: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", FIRST_ROLLOUT], env=environment, **keywords)
        assert "Warning" not in done.stderr
        return str(done.stdout).splitlines()

    assert cache_counts() == ["0 1", "0 1"]
    assert cache_counts() == ["1 0", "1 0"]
