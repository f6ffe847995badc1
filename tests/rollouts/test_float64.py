"""Observations that float32 does not resolve: metres from the equator, seconds since 1970.

A far environment adds a constant to the observations of a near one. With the normalizers of their
own observations both must act, adapt and be saved alike.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from maml_ray.common.normalization import RunningStatistics, as_float32
from maml_ray.config.loading import validate_settings
from maml_ray.config.sections import AdvantageSettings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.saved_policy import load_policy
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.collector import collect
from maml_ray.rollouts.samples import make_samples
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.serving.http.act_body import parse_act_json
from maml_ray.serving.http.adapt_body import SupportBody, policy_log_probs, to_trajectories
from maml_ray.tasks.task import Task, TaskDistribution

FAR = 5e7  # in float32, the next number is 5e7 + 4
HORIZON, EPISODES = 12, 5


class Line(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.normal()), 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.x += 0.1 * float(np.sum(action))
        self.t += 1
        return self._observe(), -abs(self.x), False, False, {}

    def _observe(self) -> NDArray[np.float64]:
        return np.array([self.offset + self.x, 0.1 * self.t])


class NearTasks(TaskDistribution):
    offset = 0.0

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        return (Task("one"),) * count

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> Any:
        return gym.wrappers.TimeLimit(Line(self.offset), horizon)


class FarTasks(NearTasks):
    offset = FAR


def settings_of(family: type[NearTasks], *, normalized: bool = True) -> Settings:
    return validate_settings(
        {
            "task": {"name": f"{__name__}:{family.__name__}", "horizon": HORIZON},
            "meta_batch": {"tasks": 2, "episodes": EPISODES},
            "policy": {"hidden_sizes": [8], "normalize_observations": normalized},
        }
    )


def statistics(offset: float) -> RunningStatistics:
    seen = np.random.default_rng(0).normal(size=(500, 2)) * [1.0, 0.3] + [offset, 0.6]
    return RunningStatistics.empty(2).merged(seen)


def agent_of(family: type[NearTasks]) -> Agent:
    settings = settings_of(family)
    with_worker = RolloutWorker(settings)
    values = MetaLearner(settings, with_worker.spec).publish().values
    with_worker.close()
    rng = np.random.default_rng(1)
    parameters = {
        name: (value + 0.5 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in values.items()
    }
    normalizer = statistics(family.offset).normalizer()
    return Agent(settings, with_worker.spec, parameters, normalizer)


def collected(agent: Agent) -> Trajectories:
    return agent.collect(Task("one"), seed=3)


def test_the_mean_is_kept_in_float64_where_float32_would_lose_how_observations_vary() -> None:
    near, far = statistics(0.0).normalizer(), statistics(FAR).normalizer()
    assert near.mean.dtype == near.scale.dtype == far.scale.dtype == np.float32
    assert far.mean.dtype == np.float64
    assert far.needs_float64
    assert not near.needs_float64
    x = np.random.default_rng(1).normal(size=(7, 2))
    for normalizer, offset in ((near, 0.0), (far, FAR)):
        observations = x + np.array([offset, 0.0])
        exact = np.clip((observations - normalizer.mean) * normalizer.scale, -10, 10)
        normalized = normalizer(observations)
        assert normalized.dtype == np.float32
        np.testing.assert_allclose(normalized, exact, atol=1e-6)


def test_far_observations_are_recorded_in_float64_and_near_ones_in_float32() -> None:
    near, far = collected(agent_of(NearTasks)), collected(agent_of(FarTasks))
    assert near.observations.dtype == np.float32
    assert far.observations.dtype == np.float64
    assert far.final_observations is not None
    assert far.final_observations.dtype == np.float64
    assert len(np.unique(far.observations[..., 0])) == HORIZON * EPISODES
    np.testing.assert_allclose(far.observations - [FAR, 0.0], near.observations, atol=1e-5)
    np.testing.assert_allclose(far.actions, near.actions, atol=1e-5)


def test_a_policy_that_does_not_normalize_has_float32() -> None:
    agent = replace(agent_of(FarTasks), normalizer=None)
    assert collected(agent).observations.dtype == np.float32


def test_far_and_near_adapt_alike() -> None:
    adapted = []
    for family in (NearTasks, FarTasks):
        agent = agent_of(family)
        support = collected(agent)
        advantages = compute_advantages(support, AdvantageSettings(baseline="zero"))
        samples = make_samples(support, advantages, agent.normalizer)
        assert samples.observations.dtype == np.float32
        recomputed = policy_log_probs(agent, support)
        np.testing.assert_allclose(recomputed, support.log_probs, atol=1e-4)
        adapted.append(samples)
    near, far = adapted
    np.testing.assert_allclose(far.observations, near.observations, atol=1e-5)
    np.testing.assert_allclose(far.advantages, near.advantages, atol=1e-3)


def test_the_first_iteration_learns_the_exact_statistics() -> None:
    """Though its own normalizer is still the identity, which does not need float64."""
    settings = settings_of(FarTasks)
    worker = RolloutWorker(settings)
    learner = MetaLearner(settings, worker.spec)
    task = sample_tasks(settings, worker.tasks, 0)[0]
    rollouts, _ = worker.roll_out(learner.publish(), Assignment(0, 0, task, 0))
    worker.close()
    seen = np.concatenate(
        [phase.observations[phase.mask] for phase in (*rollouts.support, rollouts.query)]
    )
    assert seen.dtype == np.float64
    stats = rollouts.obs_stats
    np.testing.assert_allclose(stats.mean - [FAR, 0.0], (seen - [FAR, 0.0]).mean(axis=0), atol=1e-6)
    std = np.sqrt(stats.squares / stats.count)
    np.testing.assert_allclose(std, (seen - [FAR, 0.0]).std(axis=0), rtol=1e-6)


def test_a_saved_policy_and_one_that_is_served_act_as_in_training(tmp_path: Path) -> None:
    agent = agent_of(FarTasks)
    agent.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.normalizer is not None
    assert loaded.normalizer.needs_float64
    support = collected(agent)
    seen = support.observations[:, 0]
    acted = agent.to_env_actions(agent.policy.forward(seen))
    assert len(np.unique(acted)) == EPISODES
    np.testing.assert_array_equal(agent.act(seen), acted)
    np.testing.assert_array_equal(loaded.act(seen), acted)
    body = f'{{"policy": "a", "observations": {seen.tolist()}}}'.encode()
    np.testing.assert_array_equal(agent.act(parse_act_json(body, agent.spec).observations), acted)
    sent = SupportBody.model_validate(
        {
            "observations": support.observations.tolist(),
            "samples": support.actions.tolist(),
            "rewards": support.rewards.tolist(),
        }
    )
    np.testing.assert_array_equal(to_trajectories(sent, agent).observations, support.observations)
    near = replace(agent, normalizer=statistics(0.0).normalizer())
    assert to_trajectories(sent, near).observations.dtype == np.float32


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_an_exported_policy_takes_float64(tmp_path: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    exported = agent_of(FarTasks).export(tmp_path / "policy", format=format)
    assert exported.inputs == {"observations": "(n, 2) float64"}
    assert exported.difference is not None
    assert exported.difference < 1e-4


def test_whole_numbers_that_float32_does_not_resolve() -> None:
    """Time stamps are often integers, whose spaces have an integer type."""

    class Clock(Line):
        observation_space = gym.spaces.Box(0, 2**40, (2,), np.int64)

        def _observe(self) -> Any:
            return np.array([1_700_000_000 + self.t, self.t])

    env = gym.vector.SyncVectorEnv([lambda: Clock(0.0)] * 3)
    agent = agent_of(NearTasks)
    policy = NumpyPolicy(agent.spec, agent.parameters, RunningStatistics.empty(2).normalizer())
    data = collect(policy, env, HORIZON, np.random.SeedSequence(0))
    np.testing.assert_array_equal(np.diff(data.observations[..., 0], axis=1), 1.0)
    env.close()


def test_numbers_too_large_for_anything_are_failures_as_before() -> None:
    identity = RunningStatistics.empty(2).normalizer()
    with np.errstate(all="ignore"):
        rounded = as_float32(np.full((4, 2), 1e300), identity)
    assert rounded.dtype == np.float32
    assert np.isinf(rounded).all()
