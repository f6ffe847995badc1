"""Adapt a trained policy to one task in simulation, and save it."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from maml_ray.common.errors import RunDirError, UserError
from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.config import limits
from maml_ray.evaluation.agent import Agent, WantedTask
from maml_ray.evaluation.compatibility import check_matches_task
from maml_ray.evaluation.loading import load
from maml_ray.evaluation.saved_policy import save_policy
from maml_ray.evaluation.support import support_seeds
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.task import Task

BEFORE, AFTER = range(2)
"""Streams of random numbers for the measurement before and after adaptation."""
EVAL_EPISODES = 20
_MAX_NAME_LENGTH = 100


@dataclass(frozen=True)
class SavedAdaptation:
    """An adapted policy on disk.

    Attributes:
        folder: directory of the policy.
        task: task that it was adapted to.
        steps: inner steps taken.
        before, after: mean return of separate episodes with sampled actions.
    """

    folder: Path
    task: Task
    steps: int
    before: float
    after: float


def adapt_run(
    run: Path,
    wanted: WantedTask,
    *,
    steps: int | None = None,
    episodes: int | None = None,
    seed: int = 0,
    checkpoint: str = "newest",
    output: Path | None = None,
    on_status: Callable[[str], None] = lambda message: None,
) -> SavedAdaptation:
    """Adapt a run's policy to one task and save it.

    Args:
        run: run directory.
        wanted: the task, its name or its parameters.
        steps: inner steps; by default ``inner.steps`` of the run, and at least one.
        episodes: episodes per support set; by default as in training.
        seed: random seed.
        checkpoint: "newest", "best" or a checkpoint number.
        output: directory to create; ``RUN/adapted/TASK`` by default.
        on_status: receives what is being done.

    Raises:
        UserError: there is no such task.
        RunDirError: the run cannot be read, or the directory exists or cannot be written.
    """
    on_status("loading the policy")
    agent = load(run, checkpoint=checkpoint)
    check_matches_task(agent, run)
    horizon = agent.settings.task.horizon
    problem = limits.episodes_problem(episodes or 1, horizon, "--episodes")
    if problem:
        raise UserError(problem)
    task = agent.task(wanted)
    folder = output or run / "adapted" / file_name_of(task)
    if os.path.lexists(folder):  # before the rollouts, not after
        raise RunDirError(f"{folder} already exists: name another directory with --output")
    on_status(f"adapting to {task.name} in simulation")
    outcome = adapt_in_simulation(agent, task, steps=steps, episodes=episodes, seed=seed)
    save_policy(outcome.agent, folder, task)
    return SavedAdaptation(folder, task, outcome.steps, outcome.before, outcome.after)


@dataclass(frozen=True)
class AdaptationResult:
    """The agents and data of an adaptation in simulation.

    Attributes:
        agents: the initial agent, and the agent after each inner step.
        support: trajectories that each inner step was taken on.
        before, after: mean return of separate episodes with sampled actions; NaN without episodes.
    """

    agents: tuple[Agent, ...]
    support: tuple[Trajectories, ...]
    before: float
    after: float

    @property
    def agent(self) -> Agent:
        """The adapted agent."""
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
    eval_episodes: int = EVAL_EPISODES,
) -> AdaptationResult:
    """Collect support data of ``task`` and take inner steps; measure the return before and after.

    Args:
        agent: agent to adapt; left unchanged.
        task: task to adapt to.
        steps: inner steps; by default ``inner.steps`` of the settings, and at least one.
        episodes: episodes per support set; by default as in training.
        seed: random seed.
        eval_episodes: episodes that the return is measured on, before and after.

    Raises:
        UserError: a simulation failed, or the adapted parameters are not finite.
    """
    with agent.simulations() as simulations:
        before = mean_return(agent, task, seed, BEFORE, eval_episodes, simulations)
        agents, support_sets = [agent], []
        for step_seed in islice(support_seeds(seed), steps or max(1, agent.settings.inner.steps)):
            support = agents[-1].collect_support(
                task, episodes=episodes, seed=step_seed, simulations=simulations
            )
            support_sets.append(support)
            agents.append(agents[-1].adapt(support))
        after = mean_return(agents[-1], task, seed, AFTER, eval_episodes, simulations)
    return AdaptationResult(tuple(agents), tuple(support_sets), before, after)


def mean_return(
    agent: Agent, task: Task, seed: int, stream: int, episodes: int, simulations: EnvCache
) -> float:
    """Return the mean return of new episodes with sampled actions; NaN if ``episodes`` is 0.

    Args:
        agent: agent that acts.
        task: task of the episodes.
        seed: random seed.
        stream: :data:`BEFORE` or :data:`AFTER`: both measurements use different random numbers.
        episodes: number of episodes.
        simulations: environments to use.
    """
    if episodes == 0:
        return math.nan
    seeds = seed_sequence(seed, Purpose.EVALUATION, stream)
    collected = agent.collect(task, episodes=episodes, seed=seeds, simulations=simulations)
    return float(collected.returns.mean())


def file_name_of(task: Task) -> str:
    """Return the name of the task with characters that every file system accepts."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", task.name)[:_MAX_NAME_LENGTH].strip("-.") or "task"
