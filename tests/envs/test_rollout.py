"""Whole episodes in one call equal single steps, to the last bit."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.vector import VectorWrapper
from scipy.stats import norm

from maml_ray.common.normalization import Normalizer
from maml_ray.config.loading import load_settings
from maml_ray.config.sections import PolicySettings, TaskSettings
from maml_ray.envs import mujoco_kernel
from maml_ray.envs.mujoco_state import Part
from maml_ray.envs.mujoco_vector_env import LOOK_EVERY, MujocoVectorEnv
from maml_ray.envs.vector_env import Transition
from maml_ray.kernels.policy_forward import ActionMap, PackedMLP, PolicyKernel
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.collector import collect, reset_seeds
from maml_ray.tasks.families.half_cheetah import (
    HalfCheetahBackwardVector,
    HalfCheetahDirectionVector,
)
from maml_ray.tasks.loading import resolve_tasks
from tests.envs.comparison import assert_same_trajectories

FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("half-cheetah-backward", {}),
    ("half-cheetah-velocity", {"torso_position": True}),
    ("ant-direction", {}),
    ("ant-velocity", {"contact_forces": True, "torso_position": True}),
    ("walker2d-random-dynamics", {}),
    ("hopper-random-dynamics", {}),
)
HORIZON = 4 * LOOK_EVERY + 10
SEED = np.random.SeedSequence(4)


class Stepped(VectorWrapper):
    """A batch that is stepped, since its ``rollout`` does nothing."""

    def rollout(self, *arguments: Any) -> None:
        return None

    def failed(self) -> Any:
        return self.env.failed()  # type: ignore[attr-defined]


class Recorded:
    """A batch that records whether its ``rollout`` did anything."""

    def __init__(self, env: Any) -> None:
        self._env, self.rolled_out = env, list[bool]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def rollout(self, *arguments: Any) -> Any:
        outcome = self._env.rollout(*arguments)
        self.rolled_out.append(outcome is not None)
        return outcome


def policy_for(env: Any, scale: float, bounds: Any = None, *, shifted: bool = False) -> NumpyPolicy:
    settings = PolicySettings(action_scale=scale, hidden_sizes=(8,), action_bounds=bounds)
    spec = PolicySpec.from_spaces(settings, env.single_observation_space, env.single_action_space)
    parameters = initial_parameters(spec, np.random.default_rng(0))
    rng, size = np.random.default_rng(1), spec.observation_size
    normalizer = Normalizer(
        rng.standard_normal(size).astype(np.float32), rng.uniform(0.5, 2.0, size).astype(np.float32)
    )
    shifts = rng.standard_normal((env.num_envs, 8)).astype(np.float32) if shifted else None
    return NumpyPolicy(spec, parameters, normalizer, shifts)


def pair(family: str, options: dict[str, Any], count: int, horizon: int) -> tuple[Any, Any]:
    tasks = resolve_tasks(TaskSettings(name=family, options=options))
    task = tasks.sample(np.random.default_rng(3), 1)[0]
    one, other = (tasks.make_vector_env(task, num_envs=count, horizon=horizon) for _ in range(2))
    return one, other


@pytest.mark.parametrize("explore", [True, False])
@pytest.mark.parametrize(
    ("scale", "bounds", "shifted"),
    [(1.0, "clip", False), (0.3, "none", True), (2.0, "rescale", False)],
)
@pytest.mark.parametrize(("family", "options"), FAMILIES)
def test_rollouts_equal_single_steps(
    family: str, options: dict[str, Any], scale: float, bounds: str, shifted: bool, explore: bool
) -> None:
    one, other = pair(family, options, 3, HORIZON)
    policy, recorded = policy_for(one, scale, bounds, shifted=shifted), Recorded(one)
    metrics = ["reward_control", "x_velocity"]
    for horizon in (HORIZON, HORIZON - 2, LOOK_EVERY, 3):
        seed = np.random.SeedSequence(horizon)
        mine, theirs = (
            collect(policy, env, horizon, seed, explore=explore, info_metrics=metrics)  # type: ignore[arg-type]
            for env in (recorded, Stepped(other))
        )
        assert_same_trajectories(mine, theirs)
        assert set(mine.info_means) == {"speed", *metrics}
    assert recorded.rolled_out == [True] * 4


@pytest.mark.parametrize("family", ["ant-direction", "walker2d-random-dynamics"])
def test_episodes_that_end_early_are_among_those_compared(family: str) -> None:
    env, _ = pair(family, {}, 8, 200)
    found = collect(policy_for(env, 2.0), env, 200, SEED)
    lengths = found.mask.sum(axis=1)
    assert len(set(lengths.tolist())) > 2
    assert lengths.min() < LOOK_EVERY < lengths.max()
    assert found.terminated is not None
    assert found.terminated.any()


def test_a_batch_goes_on_from_where_a_rollout_left_it_to_the_time_limit() -> None:
    one, other = pair("half-cheetah-direction", {}, 3, 25)
    policy = policy_for(one, 1.0)
    collect(policy, one, 23, SEED)
    collect(policy, Stepped(other), 23, SEED)
    ends = []
    for actions in np.random.default_rng(2).standard_normal((3, 3, 6)).astype(np.float32):
        outcome = one.step(actions)
        ends.append(bool(outcome[3].all()))
        for mine, theirs in zip(outcome[:4], other.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert ends[:2] == [False, True]


def test_simulations_of_ended_episodes_stand_still() -> None:
    env, _ = pair("hopper-random-dynamics", {}, 6, 200)
    found = collect(policy_for(env, 2.0), env, 200, SEED)
    lengths = found.mask.sum(axis=1)
    times = np.array([data.time for data in env.simulations.data]) / env.dt
    assert lengths.max() < 200
    assert (lengths <= np.round(times)).all()
    assert (times - lengths < LOOK_EVERY).all()


class Swimmers(MujocoVectorEnv):
    """Somebody's own, as in the documentation."""

    def observation_parts(self) -> list[Part]:
        return [Part("qpos", start=2), Part("qvel")]

    def assess_step(self, before: Any, after: Any, actions: Any) -> Transition:
        speed = (after.positions[..., 0] - before.positions[..., 0]) / self.dt
        return Transition(speed, np.abs(after.positions[..., 3]) > 0.4, {"speed": speed})


def test_a_batch_of_ones_own_is_rolled_out_too() -> None:
    one, other = (Swimmers(SwimmerEnv(), 5, max_episode_steps=80) for _ in range(2))
    recorded, policy = Recorded(one), policy_for(one, 1.0)
    mine = collect(policy, recorded, 80, SEED)  # type: ignore[arg-type]
    theirs = collect(policy, Stepped(other), 80, SEED)
    assert_same_trajectories(mine, theirs)
    assert recorded.rolled_out == [True]
    assert 0 < mine.mask.sum() < mine.mask.size


def test_more_steps_than_the_time_limit_has_are_not_rolled_out() -> None:
    env = HalfCheetahBackwardVector(2, max_episode_steps=4)
    env.reset(seed=0)
    before = env.state.positions.copy()
    assert env.rollout(policy_kernel(env), *empty_buffers(env)) is None
    np.testing.assert_array_equal(env.state.positions, before)


@pytest.mark.parametrize("bounds", ["clip", "none"])
def test_gymnasiums_own_environment_charges_the_same_for_the_same_actions(bounds: str) -> None:
    env, plain = HalfCheetahDirectionVector(2), gym.make("HalfCheetah-v5", ctrl_cost_weight=0.05)
    policy, seed = policy_for(env, 1.0, bounds), np.random.SeedSequence(2)
    found = collect(policy, env, 20, seed)
    assert (np.abs(found.actions) > 1.0).mean() > 0.2
    plain.reset(seed=reset_seeds(seed, 2)[0])
    for action, reward in zip(found.actions[0], found.rewards[0], strict=True):
        given = np.clip(action, -1.0, 1.0) if bounds == "clip" else action
        _, expected, _, _, info = plain.step(given)
        assert info["reward_ctrl"] == pytest.approx(-0.05 * np.square(given).sum(), rel=1e-5)
        assert reward == pytest.approx(float(expected), rel=1e-5, abs=1e-6)


def test_an_untrained_finn2017_pays_31_an_episode() -> None:
    """In closed form: 0.05 a step for six actions of a clipped standard normal distribution."""
    squared = (1.0 - 2.0 * norm.sf(1.0) - 2.0 * norm.pdf(1.0)) + 2.0 * norm.sf(1.0)
    settings = load_settings(preset="finn2017")
    assert settings.policy.action_bounds == "rescale"
    assert 200 * 6 * 0.05 * squared == pytest.approx(31.0, abs=0.1)
    tasks = resolve_tasks(settings.task)
    env = tasks.make_vector_env(tasks.named_tasks()[0], num_envs=8, horizon=50)
    spec = PolicySpec.from_spaces(
        settings.policy, env.single_observation_space, env.single_action_space
    )
    policy = NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)))
    found = collect(policy, env, 50, np.random.SeedSequence(0))
    assert found.speeds is not None
    cost = 50 * found.speeds - found.returns  # the reward is the speed minus the cost
    assert 4 * cost.mean() == pytest.approx(200 * 6 * 0.05 * squared, rel=0.05)


class Tiring(HalfCheetahBackwardVector):
    """A family of somebody's own, whose reward is another."""

    def make_transition(self, state: Any, run: Any, control: Any, infos: Any) -> Transition:
        return super().make_transition(state, run - 1.0, control, infos)


def test_a_family_with_rewards_of_its_own_gets_them() -> None:
    own, plain = (kind(2, max_episode_steps=8) for kind in (Tiring, HalfCheetahBackwardVector))
    policy, seed = policy_for(plain, 1.0), np.random.SeedSequence(1)
    tired, fresh = (collect(policy, env, 8, seed) for env in (own, plain))
    np.testing.assert_allclose(tired.rewards, fresh.rewards - 1.0, rtol=1e-5, atol=1e-5)


def policy_kernel(env: Any, steps: int = 5) -> PolicyKernel:
    noise = np.random.default_rng(0).standard_normal((steps, env.num_envs, 6)).astype(np.float32)
    policy = policy_for(env, 1.0)
    return PolicyKernel(policy.network, noise, policy.spec.action_map)


def empty_buffers(env: Any, steps: int = 5) -> tuple[Any, Any]:
    observations = np.zeros((steps + 1, env.num_envs, 17), np.float32)
    return observations, np.zeros((steps, env.num_envs, 6), np.float32)


def break_after(env: Any, step: int) -> None:
    """Put simulation 1 out of bounds after some steps of the next episode, once."""
    run, left = env.simulations.run_steps, [step]

    def run_steps(indices: Any, policy: Any, selection: Any, arrays: Any) -> None:
        for i in range(len(arrays.actions)):
            if left[0] == 0:
                env.simulations.data[1].qvel[3] = 1e13
            left[0] -= 1
            one = policy._replace(noise=policy.noise[i : i + 1])
            run(indices, one, selection, arrays.part(i, i + 1))

    env.simulations.run_steps = run_steps


@pytest.mark.parametrize("step", [0, 1, LOOK_EVERY - 1, LOOK_EVERY, LOOK_EVERY + 7])
def test_a_simulation_that_breaks_during_a_rollout_is_drawn_again(step: int) -> None:
    env = HalfCheetahBackwardVector(3, max_episode_steps=HORIZON)
    policy = policy_for(env, 1.0)
    undisturbed = collect(policy, env, HORIZON, SEED)
    break_after(env, step)
    actual = collect(policy, env, HORIZON, SEED)
    assert (undisturbed.discarded, actual.discarded) == (0, 1)
    assert not env.failed().any()
    for kept in (0, 2):
        np.testing.assert_array_equal(actual.observations[kept], undisturbed.observations[kept])
    assert not np.array_equal(actual.observations[1], undisturbed.observations[1])


SLIDER = """
<mujoco>
  <option gravity="0 0 0"/>
  <worldbody>
    <body><joint name="x" type="slide"/><geom size="0.1"/></body>
  </worldbody>
  <actuator><motor joint="x" gear="1000"/></actuator>
</mujoco>
"""


class Slider(MujocoEnv):
    """A mass that any force may push, and that a large one breaks."""

    metadata = {  # noqa: RUF012  (Gymnasium's way)
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"]
    }

    def __init__(self, path: Path) -> None:
        path.write_text(SLIDER)
        super().__init__(str(path), 2, gym.spaces.Box(-np.inf, np.inf, (2,)))

    def reset_model(self) -> Any:
        self.set_state(self.init_qpos, self.init_qvel)


class Sliders(MujocoVectorEnv):
    """Episodes end by a force above 0.5."""

    def observation_parts(self) -> list[Part]:
        return [Part("qpos"), Part("qvel")]

    def assess_step(self, before: Any, after: Any, actions: Any) -> Transition:
        return Transition(after.positions[..., 0], actions[..., 0] > 0.5, {})


@pytest.mark.parametrize(
    ("ends", "breaks", "failed"),
    [(10, 9, True), (10, 10, True), (10, 11, False), (30, 11, True), (30, 31, False)],
)
def test_only_what_breaks_before_its_end_has_failed(
    ends: int, breaks: int, failed: bool, tmp_path: Path
) -> None:
    env = Sliders(Slider(tmp_path / "slider.xml"), 3)
    forces = np.full((60, 3, 1), -1e-4, np.float32)
    forces[ends, 1], forces[breaks, 1] = 0.7, -1e9
    if ends == breaks:
        forces[ends, 1] = 1e9
    nothing = np.zeros((1, 2), np.float32), np.zeros(1, np.float32)
    network = PackedMLP.from_layers([nothing], relu=False, normalizer=None)
    one, bound = np.ones(1, np.float32), np.full(1, np.inf, np.float32)
    policy = PolicyKernel(network, forces, ActionMap(one, 0 * one, -bound, bound))
    env.reset(seed=0)
    outcome = env.rollout(policy, np.zeros((61, 3, 2), np.float32), np.zeros_like(forces))
    assert outcome is not None
    assert outcome.failed.tolist() == [False, failed, False]
    assert outcome.mask.sum(axis=0).tolist() == [60, ends + 1, 60]
    assert env.failed().tolist() == [False, True, False]
    physics_steps, model = np.arange(2, 122, 2), env.simulations.model
    acceleration = -1e-4 * 1000.0 / model.body_mass[1]
    moved = acceleration * model.opt.timestep**2 * physics_steps * (physics_steps + 1) / 2
    np.testing.assert_allclose(outcome.rewards[:, 0], moved, rtol=1e-6)


def test_a_replay_goes_from_the_state_that_was_saved() -> None:
    simulations, still = HalfCheetahBackwardVector(2).simulations, np.zeros((3, 6))
    simulations.data[1].qvel[3] = 1e13
    saved = simulations.save(range(2))
    assert [simulations.replay_fails(saved[i], still) for i in range(2)] == [False, True]
    assert not simulations.failed().any()  # only their copies have moved


@pytest.mark.parametrize(("family", "options"), [FAMILIES[0], FAMILIES[3], FAMILIES[5]])
def test_without_mujocos_library_the_bits_are_the_same(
    family: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, _ = pair(family, options, 3, HORIZON)
    policy = policy_for(compiled, 0.3)
    mine = collect(policy, compiled, HORIZON, SEED)
    assert mujoco_kernel.function_address("mj_step") is not None
    monkeypatch.setattr(mujoco_kernel, "function_address", lambda name: None)
    monkeypatch.setattr(mujoco_kernel, "run_steps", lambda *_: pytest.fail("called"))
    stepped, _ = pair(family, options, 3, HORIZON)
    theirs = collect(policy, stepped, HORIZON, SEED)
    assert_same_trajectories(mine, theirs)


def test_a_library_that_is_missing_or_is_another_has_no_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = mujoco_kernel.function_address.__wrapped__

    def missing(*_: Any, **__: Any) -> Any:
        raise OSError("not loaded")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert find("mj_step") is None
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert find("mj_step") is None


def test_numbers_of_another_size_are_not_touched() -> None:
    simulations = HalfCheetahBackwardVector(1).simulations
    keywords: dict[str, Any] = {"frame_skip": 5, "contact_forces": False}
    model, data = simulations.model, simulations.data
    assert mujoco_kernel.get_pointers(model, data, [[np.zeros(3)]], **keywords) is not None
    assert mujoco_kernel.get_pointers(model, data, [[np.zeros(3, np.float32)]], **keywords) is None
    assert mujoco_kernel.get_pointers(object(), data, [[np.zeros(3)]], **keywords) is None


class Squared(HalfCheetahBackwardVector):
    """A family that computes what it observes."""

    def observe(self) -> Any:
        return np.square(super().observe())


def test_a_family_that_computes_observations_is_stepped() -> None:
    own, plain = Squared(2, max_episode_steps=8), HalfCheetahBackwardVector(2, max_episode_steps=8)
    policy, recorded = policy_for(plain, 1.0), Recorded(own)
    found = collect(policy, recorded, 8, SEED)  # type: ignore[arg-type]
    assert recorded.rolled_out == [False]
    assert (found.observations >= 0.0).all()


class Short(Swimmers):
    """A family that forgets its velocities."""

    def observation_parts(self) -> list[Part]:
        return [Part("qpos", start=2)]


def test_parts_must_make_up_the_observation() -> None:
    with pytest.raises(ValueError, match=r"has shape \(8,\), its parts have 3 numbers"):
        Short(SwimmerEnv(), 2)


class Misspelt(Swimmers):
    """A family that observes what a state does not have."""

    def observation_parts(self) -> list[Part]:
        return [Part("qpos", start=2), Part("qvle")]


def test_parts_must_be_of_fields_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"no field 'qvle' \(there are: qpos, qvel\)"):
        Misspelt(SwimmerEnv(), 2)


@pytest.mark.parametrize("name", ["step", "assess", "advance", "read_states", "rollout"])
def test_what_whole_episodes_would_pass_over_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"Mine overrides {name}: whole episodes do not call it"):
        type("Mine", (Swimmers,), {name: lambda self, *arguments: None})


def test_after_a_rollout_the_state_is_that_of_the_simulations() -> None:
    env, _ = pair("hopper-random-dynamics", {}, 6, 200)
    lengths = collect(policy_for(env, 2.0), env, 200, SEED).mask.sum(axis=1)
    assert lengths.min() + LOOK_EVERY < lengths.max()  # some rest before others end
    np.testing.assert_array_equal(env.state.positions, [data.qpos for data in env.simulations.data])


class Strided(Swimmers):
    """A family that tracks what does not lie together in MuJoCo's memory."""

    def tracked_fields(self) -> dict[str, Any]:
        return {"planar": lambda data: data.xpos[:, :2]}


def test_tracked_fields_must_lie_together() -> None:
    with pytest.raises(ValueError, match="the field planar must be a contiguous array of MjData"):
        Strided(SwimmerEnv(), 2)


def test_noise_that_is_no_number_breaks_its_own_episode_and_nothing_else() -> None:
    env = HalfCheetahBackwardVector(3, max_episode_steps=20)
    policy = policy_kernel(env)
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
    env = HalfCheetahBackwardVector(3, max_episode_steps=20)
    policy = policy_kernel(env)
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
    before = env.state.positions.copy()
    with pytest.raises(ValueError, match="must be of sizes"):
        env.rollout(policy, observations, actions)
    np.testing.assert_array_equal(env.state.positions, before)


FIRST_ROLLOUT = """
from tests.envs.test_rollout import HalfCheetahBackwardVector, policy_kernel, empty_buffers
from maml_ray.envs.mujoco_kernel import run_steps
from maml_ray.kernels.policy_forward import mlp_forward
env = HalfCheetahBackwardVector(3)
env.reset(seed=0)
env.rollout(policy_kernel(env), *empty_buffers(env))
policy_kernel(env).network.forward(empty_buffers(env)[0])
for kernel in (run_steps, mlp_forward):
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
