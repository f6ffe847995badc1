"""Numbers that go wrong: found, drawn again or left out, counted; all else is as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from maml_ray.config.loading import validate_settings
from maml_ray.config.sections import FaultSettings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, policy_spec, sample_tasks
from maml_ray.learning.state import LearnerState, UpdateMetrics
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import initial_parameters
from maml_ray.rollouts.collector import MAX_ATTEMPTS, SimulationFailed, collect
from maml_ray.rollouts.trajectories import TaskRollouts, Trajectories
from maml_ray.runs.training_loop import check_fault_budget
from maml_ray.tasks.loading import resolve_tasks
from tests.learning_runs import rewarded

EPISODES, HORIZON = 4, 12
SEED = np.random.SeedSequence(5, spawn_key=(2, 3))
Spoil = Callable[[int, int, list[Any]], None]


def chosen(family: str = "point-navigation", **sections: Any) -> Settings:
    data: dict[str, Any] = {
        "task": {"name": family, "horizon": HORIZON},
        "policy": {"hidden_sizes": [8]},
        "meta_batch": {"tasks": 2, "episodes": EPISODES},
        "outer": {"epochs": 2},
    }
    for section, values in sections.items():
        data.setdefault(section, {}).update(values)
    return validate_settings(data)


class Spoilt:
    """An environment of which ``spoil(attempt, step, outcome)`` alters what a step gives."""

    def __init__(self, env: VectorEnv[Any, Any, Any], spoil: Spoil) -> None:
        self._env, self._spoil = env, spoil
        self.num_envs, self.metadata = env.num_envs, env.metadata
        self.single_observation_space, self.unwrapped = env.single_observation_space, env.unwrapped
        self._attempt, self._step = -1, 0

    def reset(self, **kwargs: Any) -> Any:
        self._attempt, self._step = self._attempt + 1, 0
        return self._env.reset(**kwargs)

    def step(self, actions: Any) -> Any:
        outcome = [
            np.array(part) if i < 4 else part for i, part in enumerate(self._env.step(actions))
        ]
        self._spoil(self._attempt, self._step, outcome)
        self._step += 1
        return tuple(outcome)


def collected(
    settings: Settings, spoil: Spoil | None, seed: np.random.SeedSequence
) -> Trajectories:
    tasks, spec = resolve_tasks(settings.task), policy_spec(settings)
    policy = NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)))
    (task,) = tasks.sample(np.random.default_rng(0), 1)
    env: Any = tasks.make_vector_env(task, num_envs=EPISODES, horizon=HORIZON)
    return collect(policy, env if spoil is None else Spoilt(env, spoil), HORIZON, seed)  # type: ignore[arg-type]


def assert_rows(found: Trajectories, wanted: Trajectories, rows: list[int]) -> None:
    for field in fields(Trajectories):
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one[rows], other[rows], err_msg=field.name)


@pytest.mark.parametrize("place", ["observation", "reward"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_broken_episode_is_drawn_again_from_its_next_key_and_the_others_stay(
    place: str, number: float
) -> None:
    def spoil(attempt: int, step: int, outcome: list[Any]) -> None:
        if attempt == 0 and step == 5:
            outcome[0 if place == "observation" else 1][2] = number

    settings = chosen()
    found = collected(settings, spoil, SEED)
    undisturbed = collected(settings, None, SEED)
    next_key = np.random.SeedSequence(SEED.entropy, spawn_key=(*SEED.spawn_key, 2))
    assert_rows(found, undisturbed, [0, 1, 3])
    assert_rows(found, collected(settings, None, next_key), [2])
    assert (found.discarded, undisturbed.discarded) == (1, 0)


def test_an_episode_that_breaks_twice_comes_from_the_key_after_that() -> None:
    def spoil(attempt: int, step: int, outcome: list[Any]) -> None:
        if attempt == 0:
            outcome[1][:2] = math.nan
        elif attempt == 1:
            outcome[1][1:3] = math.nan  # 2 is no concern any more: it was sound the first time

    settings = chosen()
    found = collected(settings, spoil, SEED)
    keys = [np.random.SeedSequence(SEED.entropy, spawn_key=(*SEED.spawn_key, n)) for n in (2, 3)]
    assert_rows(found, collected(settings, None, SEED), [2, 3])
    assert_rows(found, collected(settings, None, keys[0]), [0])
    assert_rows(found, collected(settings, None, keys[1]), [1])
    assert found.discarded == 3


def test_episodes_that_break_however_often_they_are_drawn_are_given_up_in_a_sentence() -> None:
    attempts: set[int] = set()

    def spoil(attempt: int, step: int, outcome: list[Any]) -> None:
        attempts.add(attempt)
        outcome[1][3] = math.nan

    with pytest.raises(SimulationFailed, match=r"1 of 4 episodes failed 3 times in a row"):
        collected(chosen(), spoil, SEED)
    assert len(attempts) == MAX_ATTEMPTS


def test_what_comes_behind_an_episodes_end_breaks_nothing() -> None:
    def spoil(attempt: int, step: int, outcome: list[Any]) -> None:
        if step == 3:
            outcome[2][1] = True
        if step > 3:
            outcome[1][1] = outcome[0][1] = math.nan

    found = collected(chosen(), spoil, SEED)
    assert found.discarded == 0
    assert found.mask.sum(axis=1).tolist() == [12, 4, 12, 12]


def test_a_simulation_that_mujoco_began_anew_by_itself_is_seen_though_all_is_finite() -> None:
    def explode(env: Any) -> Spoil:
        def spoil(attempt: int, step: int, outcome: list[Any]) -> None:
            if attempt == 0 and step == 4:
                env.simulations.data[1].qvel[3] = 1e13

        return spoil

    settings = chosen("half-cheetah-direction")
    tasks, spec = resolve_tasks(settings.task), policy_spec(settings)
    policy = NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)))
    env: Any = tasks.make_vector_env(
        tasks.sample(np.random.default_rng(0), 1)[0], num_envs=4, horizon=HORIZON
    )
    spoilt = Spoilt(env, explode(env))
    spoilt.failed = env.failed  # type: ignore[attr-defined]
    found = collect(policy, spoilt, HORIZON, SEED)  # type: ignore[arg-type]
    undisturbed = collect(policy, env, HORIZON, SEED)
    assert found.discarded == 1
    assert not env.failed().any()
    assert_rows(found, undisturbed, [0, 2, 3])


def rollouts_of(settings: Settings, learner: MetaLearner) -> list[TaskRollouts]:
    worker, tasks = RolloutWorker(settings), resolve_tasks(settings.task)
    iteration = learner.version
    return [
        worker.roll_out(learner.publish(), Assignment(iteration, index, task, iteration))[0]
        for index, task in enumerate(sample_tasks(settings, tasks, iteration))
    ]


def assert_only_counters_moved(before: LearnerState, after: LearnerState) -> None:
    assert after.version == before.version + 1
    assert after.skipped_in_a_row == before.skipped_in_a_row + 1
    moments = ("first_moments", "second_moments")
    for one, other in (
        (before.parameters, after.parameters),
        *((getattr(before.optimizer, n), getattr(after.optimizer, n)) for n in moments),
    ):
        assert set(one) == set(other)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    assert before.optimizer.steps == after.optimizer.steps


OUTER = pytest.mark.parametrize("objective", ["ppo", "trpo", "reinforce"])


@OUTER
@pytest.mark.parametrize("parameters", ["all", "context"])
def test_an_inner_step_that_explodes_is_told_and_its_update_skipped(
    parameters: str, objective: str
) -> None:
    inner = {"learning_rate": 1e300, "parameters": parameters}
    settings = chosen(outer={"objective": objective}, inner=inner)
    learner = MetaLearner(settings, policy_spec(settings))
    before, rollouts = learner.state(), rollouts_of(settings, learner)
    assert all("adapted parameters are not finite" in (task.failure or "") for task in rollouts)
    assert not any(task.query.mask.any() for task in rollouts)
    learner.prefetch(rollouts[:1])
    metrics = learner.update(rollouts)
    assert metrics.skipped is not None
    assert "task 0" in metrics.skipped
    assert math.isnan(metrics.loss)
    assert_only_counters_moved(before, learner.state())


@pytest.mark.parametrize("prefetched", [False, True])
@pytest.mark.parametrize("parameters", ["all", "context"])
def test_a_task_that_was_never_collected_is_told_and_its_update_skipped(
    monkeypatch: pytest.MonkeyPatch, parameters: str, prefetched: bool
) -> None:
    """Its support data are empty, and a context's gradient 0."""

    def give_up(*arguments: Any, **keywords: Any) -> Trajectories:
        raise SimulationFailed("it fell apart")

    settings = chosen(inner={"parameters": parameters, "steps": 2})
    learner = MetaLearner(settings, policy_spec(settings))
    before, good = learner.state(), rollouts_of(settings, learner)
    monkeypatch.setattr("maml_ray.learning.rollout_worker.collect_support", give_up)
    rollouts = [good[0], rollouts_of(settings, learner)[1]]
    assert rollouts[1].failure == "support 1: it fell apart"
    if prefetched:
        learner.prefetch(rollouts)
    metrics = learner.update(rollouts)
    assert metrics.skipped is not None
    assert "it fell apart" in metrics.skipped
    assert_only_counters_moved(before, learner.state())


@OUTER
def test_numbers_that_are_not_finite_within_an_update_undo_it_and_the_next_one_is_a_good_one(
    objective: str,
) -> None:
    settings = chosen(outer={"objective": objective}, advantages={"baseline": "zero"})
    learner = MetaLearner(settings, policy_spec(settings))
    learner.update(rollouts_of(settings, learner))
    before, rollouts = learner.state(), rollouts_of(settings, learner)
    query = rollouts[1].query
    spoilt = np.where(query.mask, np.float32(math.nan), query.rewards)
    metrics = learner.update([rollouts[0], rewarded(settings, rollouts[1], spoilt)])
    assert metrics.skipped is not None
    after = learner.state()
    assert_only_counters_moved(before, after)

    other = MetaLearner(settings, policy_spec(settings))
    other.load(after)
    again = rollouts_of(settings, learner)
    found, wanted = learner.update(again), other.update(again)
    assert found.skipped is None
    assert replace(found, learn_s=0.0) == replace(wanted, learn_s=0.0)
    assert learner.state().skipped_in_a_row == 0
    for name, value in learner.state().parameters.items():
        np.testing.assert_array_equal(value, other.state().parameters[name])


def test_discarded_episodes_are_counted_through_the_whole_run() -> None:
    settings = chosen()
    learner = MetaLearner(settings, policy_spec(settings))
    for total in (3, 6):
        rollouts = rollouts_of(settings, learner)
        query = replace(rollouts[0].query, discarded=3)
        metrics = learner.update([replace(rollouts[0], query=query), rollouts[1]])
        assert (metrics.discarded_episodes, learner.state().discarded_episodes) == (total, total)


def test_a_run_ends_when_a_budget_is_spent_and_not_before() -> None:
    settings = chosen()
    learner = MetaLearner(settings, policy_spec(settings))
    good: UpdateMetrics = learner.update(rollouts_of(settings, learner))
    budgets = FaultSettings(skipped_updates=2, discarded_episodes=5)
    bad = replace(good, skipped="the loss is not finite", skipped_in_a_row=2)
    assert check_fault_budget(good, budgets) is None
    assert check_fault_budget(bad, budgets) is None
    told = check_fault_budget(replace(bad, skipped_in_a_row=3), budgets)
    assert told is not None
    assert "faults.skipped_updates" in told
    assert "the loss is not finite" in told
    assert check_fault_budget(replace(good, discarded_episodes=5), budgets) is None
    told = check_fault_budget(replace(good, discarded_episodes=6), budgets)
    assert told is not None
    assert "faults.discarded_episodes" in told
