"""Roll out one task: collect support data and adapt, once per inner step, then collect query data.

A worker keeps no state but its environments: its rollouts depend only on the parameters, the
assignment and the run's seed, so any worker may do, or repeat, any assignment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from maml_ray.backends.inner_step import make_inner_step
from maml_ray.common.normalization import RunningStatistics
from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.config.settings import Settings
from maml_ray.envs.user_errors import UserCodeError
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicyParameters, PolicySpec
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.collector import SimulationFailed, collect, collect_support
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.samples import Samples, make_support
from maml_ray.rollouts.trajectories import TaskRollouts, Trajectories, empty_trajectories
from maml_ray.tasks.loading import OwnTasks, resolve_tasks
from maml_ray.tasks.task import Task, TaskDistribution, draw_tasks, opened_env, unusable_tasks


@dataclass(frozen=True)
class Assignment:
    """One work item: roll out ``task`` with parameters ``version``.

    Attributes:
        iteration: meta-iteration that the rollouts are for.
        task_index: index of the task in the meta-batch; with ``iteration`` it selects the random
            stream.
        task: task to roll out.
        version: parameter version to use.
    """

    iteration: int
    task_index: int
    task: Task
    version: int

    def __str__(self) -> str:
        return f"iteration {self.iteration}, task {self.task_index}"


@dataclass(frozen=True)
class RolloutTimings:
    """Seconds that an assignment took: collecting, and everything else (mostly adapting)."""

    collect_s: float
    adapt_s: float


def policy_spec(settings: Settings, tasks: TaskDistribution | None = None) -> PolicySpec:
    """Return the policy's sizes for the spaces of the task's environment.

    Args:
        settings: settings of the run.
        tasks: its task distribution; by default as the settings name it.

    Raises:
        SettingsError: no task can be sampled, its environment cannot be created, or the spaces are
            not supported.
    """
    tasks = tasks or resolve_tasks(settings.task)
    try:
        (task,) = draw_tasks(tasks, np.random.default_rng(0), 1)
        with opened_env(tasks, task, settings.task.horizon) as env:
            return PolicySpec.from_spaces(
                settings.policy, env.observation_space, env.action_space, tasks.action_bounds
            )
    except (UserCodeError, ValueError) as error:
        raise unusable_tasks(settings.task.name, error) from error


def sample_tasks(settings: Settings, tasks: TaskDistribution, iteration: int) -> tuple[Task, ...]:
    """Sample the tasks of a meta-batch; they depend on the seed and the iteration only."""
    stream = seed_sequence(settings.run.seed, Purpose.TASKS, iteration)
    return draw_tasks(tasks, np.random.default_rng(stream), settings.meta_batch.tasks)


class _Stopwatch:
    """Accumulates the seconds spent in its ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._started


class RolloutWorker:
    """Collects rollouts of one task at a time in its own environments.

    Args:
        settings: settings of the run.
        own_tasks: tasks of the run if they were given in Python.
        on_phase: called with the name of each phase when it begins.
    """

    def __init__(
        self,
        settings: Settings,
        own_tasks: OwnTasks | None = None,
        on_phase: Callable[[str], None] = lambda phase: None,
    ) -> None:
        self.settings = settings
        self._on_phase = on_phase
        self.tasks = resolve_tasks(settings.task, own_tasks)
        self.spec = policy_spec(settings, self.tasks)
        self._inner_step = make_inner_step(settings.inner, self.spec)
        self._envs = EnvCache(self.tasks, settings.task.horizon)

    def roll_out(
        self, parameters: PolicyParameters, assignment: Assignment
    ) -> tuple[TaskRollouts, RolloutTimings]:
        """Collect support data and adapt to it, once per inner step; then collect query data.

        If simulations keep failing or the adapted parameters are not finite, the rollouts contain
        the phases before the failure and ``failure`` is set, so that one task cannot end a run.

        Raises:
            ValueError: ``parameters`` do not have the assignment's version.
        """
        if parameters.version != assignment.version:
            raise ValueError(
                f"{assignment} asks for parameters of version {assignment.version}, "
                f"got version {parameters.version}"
            )
        start, collecting = time.perf_counter(), _Stopwatch()
        phases, support_advantages, failure = self._run_phases(parameters, assignment, collecting)
        phases += [self._empty_phase()] * (self.settings.inner.steps + 1 - len(phases))
        *support, query = phases
        observations = np.concatenate([phase.observations[phase.mask] for phase in phases])
        rollouts = TaskRollouts(
            task=assignment.task,
            task_index=assignment.task_index,
            version=assignment.version,
            support=tuple(support),
            query=query,
            support_advantages=support_advantages,
            query_advantages=(
                compute_advantages(query, self.settings.advantages)
                if failure is None
                else np.zeros_like(query.rewards)
            ),
            obs_stats=RunningStatistics.empty(self.spec.observation_size).merged(observations),
            failure=failure,
        )
        other_s = time.perf_counter() - start - collecting.seconds
        return rollouts, RolloutTimings(collecting.seconds, other_s)

    def _run_phases(
        self, parameters: PolicyParameters, assignment: Assignment, collecting: _Stopwatch
    ) -> tuple[list[Trajectories], tuple[NDArray[np.float32], ...], str | None]:
        """Return the phases up to the first failure, advantages of support sets, and the failure.

        A context needs no advantages.
        """
        values, phases = parameters.values, list[Trajectories]()
        advantages: tuple[NDArray[np.float32], ...] = ()
        inner = self.settings.inner
        for number in range(inner.steps + 1):
            name = "query" if number == inner.steps else f"support {number + 1}"
            self._on_phase(name)
            try:
                with collecting:
                    trajectories = self._collect(
                        replace(parameters, values=values), assignment, number
                    )
            except SimulationFailed as error:
                return phases, advantages, f"{name}: {error}"
            phases.append(trajectories)
            if number == inner.steps:
                break
            name = f"adaptation {number + 1}"
            self._on_phase(name)
            support = make_support(
                inner, self.settings.advantages, trajectories, parameters.normalizer
            )
            if isinstance(support, Samples):
                advantages += (support.advantages,)
            values = self._inner_step(values, support, number)
            if not all(np.isfinite(value).all() for value in values.values()):
                return phases, advantages, f"{name}: the adapted parameters are not finite"
        return phases, advantages, None

    def _empty_phase(self) -> Trajectories:
        inner = self.settings.inner
        return empty_trajectories(
            self.settings.meta_batch.episodes,
            self.settings.task.horizon,
            self.spec.observation_size,
            self.spec.recorded_action_size,
            inner.context_size if inner.parameters == "context" else None,
        )

    def _collect(
        self, parameters: PolicyParameters, assignment: Assignment, phase: int
    ) -> Trajectories:
        """Return the support episodes of step ``phase``, or, after the last, the query episodes."""
        seed = seed_sequence(
            self.settings.run.seed,
            Purpose.ROLLOUT,
            assignment.iteration,
            assignment.task_index,
            phase,
        )
        env = self._envs.get(assignment.task, self.settings.meta_batch.episodes)
        inner, task = self.settings.inner, self.settings.task
        values, normalizer = parameters.values, parameters.normalizer
        if phase < inner.steps:
            return collect_support(
                inner,
                self.spec,
                values,
                normalizer,
                env,
                task.horizon,
                seed,
                info_metrics=task.info_metrics,
            )
        policy = NumpyPolicy(self.spec, values, normalizer)
        return collect(policy, env, task.horizon, seed, info_metrics=task.info_metrics)

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()
