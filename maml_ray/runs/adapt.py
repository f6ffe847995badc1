"""Adapting a trained policy to one named task, and keeping it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maml_ray.common.errors import RunDirError, UserError
from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.config import limits
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.compatibility import check_matches_task
from maml_ray.evaluation.loading import load
from maml_ray.evaluation.policy_export import save_policy
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.registry import resolve_tasks
from maml_ray.tasks.task import Task

BEFORE, AFTER, _SUPPORT = range(3)
MEASURED_EPISODES = 20
_LONGEST_NAME = 100


@dataclass(frozen=True)
class SavedAdaptation:
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


def adapt_run(
    run: Path,
    parameters: Mapping[str, float],
    *,
    steps: int | None = None,
    episodes: int | None = None,
    seed: int = 0,
    checkpoint: str = "newest",
    output: Path | None = None,
) -> SavedAdaptation:
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
        RunDirError: the run cannot be read, or the folder is there or cannot be written.
    """
    agent = load(run, checkpoint=checkpoint)
    check_matches_task(agent, run)
    horizon = agent.settings.task.horizon
    problem = limits.episodes_at_once(episodes or 1, horizon, "--episodes")
    if problem:
        raise UserError(problem)
    task = task_from_parameters(agent, parameters)
    folder = output or run / "adapted" / _slug(task)
    if os.path.lexists(folder):  # before the work, not after it
        raise RunDirError(f"{folder} is there already: name another folder with --output")
    outcome = adapt_in_simulation(agent, task, steps=steps, episodes=episodes, seed=seed)
    save_policy(outcome.agent, folder, task)
    return SavedAdaptation(folder, task, outcome.steps, outcome.before, outcome.after)


@dataclass(frozen=True)
class AdaptationResult:
    """An adaptation in simulation.

    Attributes:
        agents: the one before, and the one after each inner step.
        support: what each inner step was taken on.
        before, after: mean return of fresh episodes, sampled actions; NaN where none were asked
            for.
    """

    agents: tuple[Agent, ...]
    support: tuple[Trajectories, ...]
    before: float
    after: float

    @property
    def agent(self) -> Agent:
        """The adapted one."""
        return self.agents[-1]

    @property
    def steps(self) -> int:
        """Inner steps taken."""
        return len(self.support)


def adapt_in_simulation(
    agent: Agent,
    task: Task,
    *,
    steps: int | None = None,
    episodes: int | None = None,
    seed: int = 0,
    measured: int = MEASURED_EPISODES,
) -> AdaptationResult:
    """Collect support data of ``task`` and take an inner step, once or more; measure around it.

    Args:
        agent: whom to adapt; stays as it is.
        task: to what.
        steps: inner steps; ``inner.steps`` of the settings by default, and at least one.
        episodes: of each support set; as in training by default.
        seed: of everything that is drawn.
        measured: episodes that the return is measured on, before and after.

    Raises:
        UserError: the simulations or the adapted parameters break.
    """
    with agent.simulations() as simulations:
        before = mean_return(agent, task, seed, BEFORE, measured, simulations)
        agents, supports = [agent], []
        for step in range(steps or max(1, agent.settings.inner.steps)):
            stream = seed_sequence(seed, Purpose.EVALUATION, _SUPPORT, step)
            support = agents[-1].collect(
                task, episodes=episodes, seed=stream, simulations=simulations
            )
            supports.append(support)
            agents.append(agents[-1].adapt(support))
        after = mean_return(agents[-1], task, seed, AFTER, measured, simulations)
    return AdaptationResult(tuple(agents), tuple(supports), before, after)


def mean_return(
    agent: Agent, task: Task, seed: int, stream: int, episodes: int, simulations: EnvCache
) -> float:
    """Mean return of fresh episodes with sampled actions; NaN of none.

    Args:
        agent: who acts.
        task: on what.
        seed: of what is drawn.
        stream: :data:`BEFORE` or :data:`AFTER` adaptation: each has episodes of its own.
        episodes: how many.
        simulations: to be used.
    """
    if episodes == 0:
        return math.nan
    seeds = seed_sequence(seed, Purpose.EVALUATION, stream)
    collected = agent.collect(task, episodes=episodes, seed=seeds, simulations=simulations)
    return float(collected.returns.mean())


def task_from_parameters(agent: Agent, parameters: Mapping[str, float]) -> Task:
    """The task of the agent's family that has these parameters.

    Raises:
        UserError: there is none; the sentence says what there is.
    """
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
