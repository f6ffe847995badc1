"""What one task of a meta-iteration costs a rollout actor: support, adapt, query. No Ray.

The worker owns the simulations and is otherwise without state: what it returns depends on the
parameters, the task and the settings' seed alone, so any worker may do any work, again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from maml_ray.backends.inner_step import inner_step_of
from maml_ray.common.normalization import RunningStatistics
from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicyParameters, PolicySpec
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.collector import SimulationFailed, collect
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.samples import sample_arrays
from maml_ray.rollouts.trajectories import TaskRollouts, Trajectories, empty_trajectories
from maml_ray.tasks.registry import resolve_tasks
from maml_ray.tasks.task import Task, TaskDistribution


@dataclass(frozen=True)
class Assignment:
    """One piece of work: roll out ``task`` with the parameters of ``version``.

    Attributes:
        iteration: the meta-iteration that asks.
        task_index: the task's place in the meta-batch; with the iteration it names the stream
            of random numbers.
        task: the task.
        version: the version of the parameters to use.
    """

    iteration: int
    task_index: int
    task: Task
    version: int

    def __str__(self) -> str:
        return f"iteration {self.iteration}, task {self.task_index}"


@dataclass(frozen=True)
class RolloutTimings:
    """Seconds that an assignment took: to collect, and to adapt, weigh and pack what there is."""

    collect_s: float
    adapt_s: float


def policy_spec(settings: Settings, tasks: TaskDistribution | None = None) -> PolicySpec:
    """The policy's sizes, read off the task's spaces.

    Raises:
        SettingsError: a policy cannot be made for these spaces.
    """
    tasks = tasks or resolve_tasks(settings.task)
    task = tasks.sample(np.random.default_rng(0), 1)[0]
    env = tasks.make_env(task, horizon=settings.task.horizon)
    try:
        return PolicySpec.from_spaces(settings.policy, env.observation_space, env.action_space)
    except ValueError as error:
        raise SettingsError(f"task.name = {settings.task.name!r} cannot be used: {error}") from None
    finally:
        env.close()


def sample_tasks(settings: Settings, tasks: TaskDistribution, iteration: int) -> tuple[Task, ...]:
    """The meta-batch of ``iteration``: its tasks depend on the seed and the iteration alone."""
    stream = seed_sequence(settings.run.seed, Purpose.TASKS, iteration)
    return tasks.sample(np.random.default_rng(stream), settings.meta_batch.tasks)


@dataclass(frozen=True)
class _Phase:
    """Trajectories, and their advantages (K, T)."""

    trajectories: Trajectories
    advantages: NDArray[np.float32]


class _Stopwatch:
    """Adds up the seconds spent within it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._began


def _observed(phases: Sequence[Trajectories]) -> RunningStatistics:
    """Of all observations, those after an episode's end left out."""
    seen = np.concatenate([phase.observations[phase.mask] for phase in phases])
    return RunningStatistics.empty(seen.shape[1]).merged(seen)


class RolloutWorker:
    """A batch of simulations and the inner loop around it.

    Args:
        settings: of the run.
        told: told of every phase as it begins.
    """

    def __init__(
        self, settings: Settings, told: Callable[[str], None] = lambda phase: None
    ) -> None:
        self.settings = settings
        self._told = told
        self.tasks = resolve_tasks(settings.task)
        self.spec = policy_spec(settings, self.tasks)
        self._inner_step = inner_step_of(settings, self.spec)
        self._simulations = EnvCache(self.tasks, settings.task.horizon)

    def roll_out(
        self, parameters: PolicyParameters, assignment: Assignment
    ) -> tuple[TaskRollouts, RolloutTimings]:
        """Collect support data and adapt to it, once per inner step; then collect query data.

        Where simulations break again and again, or the adapted parameters are not finite, the
        rollouts say so, and hold what there is: one bad task does not end a run.

        Raises:
            ValueError: ``parameters`` are not of the version that the assignment names.
        """
        if parameters.version != assignment.version:
            raise ValueError(
                f"{assignment} asks for parameters of version {assignment.version}, "
                f"got version {parameters.version}"
            )
        began, collecting = time.perf_counter(), _Stopwatch()
        phases, broken = self._phases(parameters, assignment, collecting)
        phases += [self._nothing()] * (self.settings.inner.steps + 1 - len(phases))
        *support, query = phases
        rollouts = TaskRollouts(
            task=assignment.task,
            task_index=assignment.task_index,
            version=assignment.version,
            support=tuple(phase.trajectories for phase in support),
            query=query.trajectories,
            support_advantages=tuple(phase.advantages for phase in support),
            query_advantages=query.advantages,
            observed=_observed([phase.trajectories for phase in phases]),
            broken=broken,
        )
        elsewhere_s = time.perf_counter() - began - collecting.seconds
        return rollouts, RolloutTimings(collecting.seconds, elsewhere_s)

    def _phases(
        self, parameters: PolicyParameters, assignment: Assignment, collecting: _Stopwatch
    ) -> tuple[list[_Phase], str | None]:
        """The phases that could be collected, and what broke at the next one."""
        theta, phases = parameters.values, list[_Phase]()
        steps = self.settings.inner.steps
        for number in range(steps + 1):
            policy = NumpyPolicy(self.spec, theta, parameters.normalizer)
            try:
                with collecting:
                    trajectories = self._collect(policy, assignment, number)
            except SimulationFailed as error:
                return phases, f"{self._name(number)}: {error}"
            estimates = compute_advantages(trajectories, self.settings.advantages)
            phases.append(_Phase(trajectories, estimates))
            if number < steps:
                self._told(f"adaptation {number + 1}")
                samples = sample_arrays(trajectories, estimates, parameters.normalizer)
                theta = self._inner_step(theta, samples)
                if not all(np.isfinite(value).all() for value in theta.values()):
                    name = f"adaptation {number + 1}"
                    return phases, f"{name}: the adapted parameters are not finite"
        return phases, None

    def _name(self, phase: int) -> str:
        return "query" if phase == self.settings.inner.steps else f"support {phase + 1}"

    def _nothing(self) -> _Phase:
        """In the place of a phase that could not be collected."""
        spec, settings = self.spec, self.settings
        nothing = empty_trajectories(
            settings.meta_batch.episodes,
            settings.task.horizon,
            spec.observation_size,
            spec.recorded_action_size,
        )
        return _Phase(nothing, np.zeros_like(nothing.rewards))

    def _collect(self, policy: NumpyPolicy, assignment: Assignment, phase: int) -> Trajectories:
        self._told(self._name(phase))
        seed = seed_sequence(
            self.settings.run.seed,
            Purpose.ROLLOUT,
            assignment.iteration,
            assignment.task_index,
            phase,
        )
        env = self._simulations.of(assignment.task, self.settings.meta_batch.episodes)
        return collect(policy, env, self.settings.task.horizon, seed)

    def close(self) -> None:
        """Free the simulations."""
        self._simulations.close()
