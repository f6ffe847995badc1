"""Measure an agent's return after 0, 1, 2, ... adaptation steps on held-out tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from maml_ray.common.errors import UserError
from maml_ray.common.numbers import check_whole_number
from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.results import ActionMode, Episode, Evaluation, Measurement
from maml_ray.rollouts.collector import reset_seeds
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.task import Task

_SUPPORT, _STOCHASTIC, _MEAN = range(3)
"""Last word of a random stream's key: what the stream is used for."""
_ACTION_MODES: tuple[tuple[ActionMode, int], ...] = (("stochastic", _STOCHASTIC), ("mean", _MEAN))


def evaluate(
    agent: Agent,
    *,
    tasks: int | None = None,
    episodes: int | None = None,
    steps: int | None = None,
    adaptation_episodes: int | None = None,
    seed: int = 0,
    on_task: Callable[[int, int], None] = lambda task, tasks: None,
) -> Evaluation:
    """Evaluate an agent on held-out tasks, with random numbers not used in training.

    For each task the agent repeatedly collects a support set and takes an inner step. Before the
    first step and after each one, its return is measured on separate episodes.

    Args:
        agent: agent to evaluate, for example from :func:`maml_ray.load`.
        tasks: number of adaptations; default ``evaluation.tasks`` of the agent's settings.
        episodes: episodes per adaptation, number of steps and action mode; default
            ``evaluation.episodes``.
        steps: adaptation steps; default ``evaluation.steps`` if set, else ``inner.steps`` but at
            least 1.
        adaptation_episodes: episodes in the support set of each step; default
            ``meta_batch.episodes``, the size used in training.
        seed: random seed.
        on_task: called at the start of each adaptation with its index and the number of
            adaptations.

    Raises:
        UserError: ``agent`` is no agent, or a number is not a whole one.
    """
    if not isinstance(agent, Agent):
        raise UserError(f"agent = {agent!r:.80} is not allowed: write evaluate(maml_ray.load(RUN))")
    settings = agent.settings
    tasks = settings.evaluation.tasks if tasks is None else tasks
    episodes = settings.evaluation.episodes if episodes is None else episodes
    if steps is None:
        steps = settings.evaluation.steps
    if steps is None:
        steps = max(1, settings.inner.steps)
    if adaptation_episodes is None:
        adaptation_episodes = settings.meta_batch.episodes
    for name, number, least in (
        ("tasks", tasks, 1),
        ("episodes", episodes, 1),
        ("steps", steps, 0),
        ("adaptation_episodes", adaptation_episodes, 1),
        ("seed", seed, 0),
    ):
        check_whole_number(name, number, least=least)
    held_out = agent.sample_tasks(tasks, seed=seed)
    info_metrics = settings.task.info_metrics
    measurements: list[Measurement] = []
    replays: dict[int, list[Episode]] = {index: [] for index in _most_different(held_out)}
    with agent.simulations() as simulations:
        for index, task in enumerate(held_out):
            on_task(index, tasks)
            key = (seed, index)
            for adapted, step in _adaptations(
                agent, task, steps, adaptation_episodes, key, simulations
            ):
                for actions, trajectories, stream in _rollouts(
                    adapted, task, episodes, step, key, simulations
                ):
                    measurements.append(
                        _measurement(task, index, step, actions, trajectories, info_metrics)
                    )
                    if index in replays and actions == "mean" and step in (0, steps):
                        reset_seed = reset_seeds(stream, episodes)[0]
                        replays[index].append(_episode(task, step, reset_seed, trajectories))
    pairs = tuple((pair[0], pair[-1]) for pair in replays.values())
    return Evaluation(tasks, episodes, seed, tuple(measurements), pairs, adaptation_episodes)


def _adaptations(
    agent: Agent,
    task: Task,
    steps: int,
    episodes: int,
    key: tuple[int, int],
    simulations: EnvCache,
) -> Iterator[tuple[Agent, int]]:
    """Yield the agent after 0 to ``steps`` inner steps, each on ``episodes`` new episodes."""
    for step in range(steps + 1):
        yield agent, step
        if step < steps:
            stream = _stream(key, step, _SUPPORT)
            support = agent.collect_support(
                task, episodes=episodes, seed=stream, simulations=simulations
            )
            agent = agent.adapt(support)


def _rollouts(
    agent: Agent,
    task: Task,
    episodes: int,
    step: int,
    key: tuple[int, int],
    simulations: EnvCache,
) -> Iterator[tuple[ActionMode, Trajectories, np.random.SeedSequence]]:
    """Yield episodes with stochastic and with mean actions, and the random stream of each."""
    for actions, kind in _ACTION_MODES:
        # Mean actions start from the same states after any number of steps, for comparison.
        stream = _stream(key, step if kind == _STOCHASTIC else 0, kind)
        trajectories = agent.collect(
            task,
            episodes=episodes,
            seed=stream,
            explore=kind == _STOCHASTIC,
            simulations=simulations,
        )
        yield actions, trajectories, stream


def _stream(key: tuple[int, int], step: int, kind: int) -> np.random.SeedSequence:
    seed, index = key
    return seed_sequence(seed, Purpose.EVALUATION, index, step, kind)


def _measurement(
    task: Task,
    adaptation: int,
    steps: int,
    actions: ActionMode,
    trajectories: Trajectories,
    info_metrics: Sequence[str],
) -> Measurement:
    speeds = trajectories.speeds
    return Measurement(
        task=task,
        adaptation=adaptation,
        steps=steps,
        actions=actions,
        returns=tuple(trajectories.returns.tolist()),
        speeds=None if speeds is None else tuple(float(speed) for speed in speeds),
        infos={name: _episode_means(trajectories, name) for name in info_metrics},
    )


def _episode_means(trajectories: Trajectories, name: str) -> tuple[float | None, ...]:
    missing = np.full(trajectories.episodes, np.nan)
    means = trajectories.info_means.get(name, missing)
    return tuple(None if np.isnan(mean) else float(mean) for mean in means)


def _episode(task: Task, steps: int, reset_seed: int, trajectories: Trajectories) -> Episode:
    """Return the first of the episodes."""
    speeds = trajectories.speeds
    return Episode(
        task=task,
        steps=steps,
        reset_seed=reset_seed,
        actions=trajectories.actions[0][trajectories.mask[0]],
        episode_return=float(trajectories.returns[0]),
        speed=None if speeds is None or np.isnan(speeds[0]) else float(speeds[0]),
    )


def _most_different(tasks: tuple[Task, ...]) -> tuple[int, ...]:
    """Return indices of the tasks least and greatest by parameters, or of one if all are equal."""

    def position(index: int) -> tuple[Any, ...]:  # numbers before text
        pairs = tasks[index].parameters
        return tuple((key, isinstance(value, str), value) for key, value in pairs), index

    ordered = sorted(range(len(tasks)), key=position)
    first, last = ordered[0], ordered[-1]
    return (first,) if tasks[first] == tasks[last] else (first, last)
