"""Adapting a trained policy to one named task, and keeping it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maml_ray import limits
from maml_ray.agent import Agent
from maml_ray.errors import RunFolderError, UserError
from maml_ray.fitting import check_fits_task
from maml_ray.loading import load
from maml_ray.policy_folder import save_policy
from maml_ray.seeding import Purpose, seed_sequence
from maml_ray.tasks.distribution import Task
from maml_ray.tasks.lookup import resolve_tasks

_BEFORE, _AFTER, _SUPPORT = range(3)
_MEASURED_EPISODES = 20
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Adapted:
    """An adaptation that has been written down.

    Attributes:
        folder: where the policy is.
        task: what it was adapted to.
        steps: inner steps taken.
        before, after: mean return of fresh episodes, sampled actions.
    """

    folder: Path
    task: Task
    steps: int
    before: float
    after: float


def adapt_to(
    run: Path,
    parameters: Mapping[str, float],
    *,
    steps: int | None = None,
    episodes: int | None = None,
    seed: int = 0,
    checkpoint: str = "newest",
    output: Path | None = None,
) -> Adapted:
    """Collect support data of a task, take the inner steps, and write the policy.

    Args:
        run: a run folder.
        parameters: of the task.
        steps: inner steps; ``inner.steps`` of the run by default, and at least one.
        episodes: of each support set; as in training by default.
        seed: of the support data.
        checkpoint: of the run: newest, best, or its number.
        output: folder to make; ``RUN/adapted/TASK`` by default.

    Raises:
        UserError: there is no such task.
        RunFolderError: the run cannot be read, or the folder is there or cannot be written.
    """
    agent = load(run, checkpoint=checkpoint)
    check_fits_task(agent, run)
    horizon = agent.settings.task.horizon
    problem = limits.episodes_at_once(episodes or 1, horizon, "--episodes")
    if problem:
        raise UserError(problem)
    task = _task(agent, parameters)
    folder = output or run / "adapted" / _slug(task)
    if os.path.lexists(folder):  # before the work, not after it
        raise RunFolderError(f"{folder} is there already: name another folder with --output")
    steps = steps or max(1, agent.settings.inner.steps)
    adapted = agent
    with agent.simulations() as simulations:

        def measured(policy: Agent, stream: int) -> float:
            seeds = seed_sequence(seed, Purpose.EVALUATION, stream)
            episodes = policy.collect(
                task, episodes=_MEASURED_EPISODES, seed=seeds, simulations=simulations
            )
            return float(episodes.returns.mean())

        before = measured(agent, _BEFORE)
        for step in range(steps):
            stream = seed_sequence(seed, Purpose.EVALUATION, _SUPPORT, step)
            support = adapted.collect(task, episodes=episodes, seed=stream, simulations=simulations)
            adapted = adapted.adapt(support)
        after = measured(adapted, _AFTER)
    save_policy(adapted, folder, task)
    return Adapted(folder, task, steps, before, after)


def _task(agent: Agent, parameters: Mapping[str, float]) -> Task:
    for key, value in parameters.items():
        if not math.isfinite(value):
            raise UserError(f"the task's {key} = {value} is not a number")
    try:
        return resolve_tasks(agent.settings.task).task(parameters)
    except ValueError as error:
        raise UserError(f"there is no such task of {agent.settings.task.name}: {error}") from None


def _slug(task: Task) -> str:
    """The task's name as a folder's."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", task.name)[:_LONGEST_NAME].strip("-.") or "task"
