"""Check a task distribution: sample it, and roll out its environments as training does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maml_ray.common.errors import UserError
from maml_ray.common.normalization import RunningStatistics
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.envs.user_errors import place_of_definition
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.batch_check import BatchCheck
from maml_ray.rollouts.check_findings import CheckStopped, Findings, TaskCheck
from maml_ray.rollouts.env_check import check_env
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.loading import OwnTasks, record_own_tasks, resolve_tasks
from maml_ray.tasks.task import Task, TaskDistribution, sampling_problem

_TASKS = 20  # sampled
_STEPS = 20  # of each rollout: enough to see a difference, and quick


def check_tasks(tasks: OwnTasks | Settings) -> TaskCheck:
    """Check a task distribution before training on it; takes about a second.

    Samples tasks, creates an environment, runs Gymnasium's ``check_env`` on it, and rolls out a
    few steps of a batch with an untrained policy, for two tasks. Needs neither PyTorch nor Ray.

    Args:
        tasks: a subclass of :class:`TaskDistribution`, an instance of one, or settings that name
            tasks.

    Returns:
        What was found, in sentences; its ``repr`` lists them.

    Raises:
        SettingsError: ``tasks`` is none of these.
    """
    if not isinstance(tasks, Settings | TaskDistribution | type):
        raise SettingsError(
            f"tasks = {tasks!r:.80} is not allowed: write check_tasks(MyTasks), with a subclass of "
            "maml_ray.TaskDistribution or an instance of one, or give settings"
        )
    own = None if isinstance(tasks, Settings) else tasks
    findings = Findings()
    try:
        settings = tasks if isinstance(tasks, Settings) else record_own_tasks(Settings(), tasks)
        _check(settings, resolve_tasks(settings.task, own), findings)
    except CheckStopped:
        pass
    except UserError as error:
        findings.problems.append(str(error))
    return findings.summary(_name(tasks))


def _name(tasks: OwnTasks | Settings) -> str:
    if isinstance(tasks, Settings):
        return tasks.task.name
    return tasks.__name__ if isinstance(tasks, type) else type(tasks).__name__


def _check(settings: Settings, tasks: TaskDistribution, findings: Findings) -> None:
    horizon = min(settings.task.horizon, _STEPS)
    drawn = _check_sampling(tasks, findings)
    spec = check_env(tasks, drawn[0], settings, horizon, findings)
    policy = _untrained_policy(spec)
    info_metrics = settings.task.info_metrics
    first = BatchCheck(tasks, policy, horizon, info_metrics, findings).run(drawn)
    _check_observations(first, settings.policy.normalize_observations, findings)


def _untrained_policy(spec: PolicySpec) -> NumpyPolicy:
    # As in a run's first iteration: the normalizer decides about the observations' type.
    normalizer = RunningStatistics.empty(spec.observation_size).normalizer()
    return NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)), normalizer)


def _check_sampling(tasks: TaskDistribution, findings: Findings) -> Sequence[Task]:
    """Check both ways to sample; return the training tasks."""
    drawn = _draw("sample", tasks.sample, 0, findings)
    held_out = _draw("sample_held_out", tasks.sample_held_out, 1, findings)
    different = {task.parameters for task in drawn}
    shared = different & {task.parameters for task in held_out}
    plural = "" if len(different) == 1 else "s"
    findings.passed.append(
        f"{len(different)} different task{plural} in a sample of {_TASKS}, such as "
        f"{drawn[0].name!r}; {len(shared) or 'none'} of them among {_TASKS} held-out ones"
    )
    if len(different) == 1:
        findings.notes.append("all tasks sampled are the same: there is nothing to adapt to")
    return drawn


def _draw(name: str, sample: Callable[..., Any], seed: int, findings: Findings) -> Sequence[Task]:
    call = f"{name}(rng, {_TASKS})"
    drawn: Sequence[Task]
    drawn, again = (
        findings.call(call, sample, np.random.default_rng(seed), _TASKS) for _ in range(2)
    )
    problem = sampling_problem(drawn, _TASKS)
    if problem is not None:
        findings.problems.append(f"{call} {problem}{place_of_definition(sample)}")
        if not isinstance(drawn, Sequence) or sampling_problem(drawn, len(drawn)) or not drawn:
            raise CheckStopped
    findings.expect(
        tuple(drawn) == tuple(again),
        f"{call} draws other tasks from an equal generator: draw from rng alone",
    )
    return drawn


def _check_observations(first: Trajectories, normalize: bool, findings: Findings) -> None:
    if first.observations.dtype == np.float64 and not normalize:
        largest = np.abs(first.observations).max()
        findings.notes.append(
            f"observations of magnitude {largest:.1g} vary by less than a network's float32 "
            "resolves: set policy.normalize_observations: true, which centers them in float64, or "
            "subtract a constant in the environment"
        )
