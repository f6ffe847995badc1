"""Evaluation: the return after 0, 1, 2, ... adaptation steps, on held-out tasks. No Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.bootstrap import bootstrap_interval
from maml_ray.rollouts.collector import reset_seeds
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.task import Task

Actions = Literal["stochastic", "mean"]
_SUPPORT, _STOCHASTIC, _MEAN = range(3)
_KINDS: tuple[tuple[Actions, int], ...] = (("stochastic", _STOCHASTIC), ("mean", _MEAN))


@dataclass(frozen=True)
class Measurement:
    """Episodes of one adaptation to one task, after some number of steps, by one way to act.

    Attributes:
        task: the task.
        adaptation: its number; each has support data of its own.
        steps: adaptation steps taken; 0 is before adaptation.
        actions: sampled from the policy, or its mean.
        returns: undiscounted, one an episode.
        speeds: mean speed of each episode in m/s; None where the task tells none.
    """

    task: Task
    adaptation: int
    steps: int
    actions: Actions
    returns: tuple[float, ...]
    speeds: tuple[float, ...] | None


@dataclass(frozen=True)
class EvaluationRow:
    """Measurements summed up.

    Attributes:
        task: its name; None for all together.
        steps: adaptation steps taken.
        actions: sampled from the policy, or its mean.
        mean: mean undiscounted return.
        low, high: 95% interval of the mean
            (:func:`maml_ray.evaluation.bootstrap.bootstrap_interval`).
        speed: mean speed in m/s; None where the task tells none.
        episodes: how many there are.
    """

    task: str | None
    steps: int
    actions: Actions
    mean: float
    low: float
    high: float
    speed: float | None
    episodes: int


@dataclass(frozen=True, eq=False)
class Episode:
    """One evaluated episode, enough to see it again: its task, its reset seed, its actions.

    Attributes:
        task: the task.
        steps: adaptation steps taken before it.
        reset_seed: of its initial state.
        actions: (T, n) as recorded.
        total: its undiscounted return.
        speed: its mean speed in m/s, if the task tells one.
    """

    task: Task
    steps: int
    reset_seed: int
    actions: NDArray[np.float32]
    total: float
    speed: float | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation found.

    Attributes:
        tasks: number of adaptations, each to a task drawn from the held-out ones.
        episodes: per adaptation, number of steps and way to act.
        seed: of all the randomness in it.
        measurements: everything, in the order of adaptation, steps, way to act.
        replays: the first mean-action episode before and after adaptation, from the same initial
            state, of one task or of two that differ most.
    """

    tasks: int
    episodes: int
    seed: int
    measurements: tuple[Measurement, ...]
    replays: tuple[tuple[Episode, Episode], ...]

    @property
    def rows(self) -> tuple[EvaluationRow, ...]:
        """All tasks together, by number of steps, stochastic before mean actions."""
        return self._rows(lambda measurement: None)

    @property
    def rows_by_task(self) -> tuple[EvaluationRow, ...]:
        """The same for each distinct task."""
        return self._rows(lambda measurement: measurement.task.name)

    def row(self, steps: int, actions: Actions) -> EvaluationRow:
        """The row of all tasks for a number of steps and a way to act.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if (row.steps, row.actions) == (steps, actions):
                return row
        raise KeyError(f"nothing was measured after {steps} steps with {actions} actions")

    def _rows(self, task_of: Callable[[Measurement], str | None]) -> tuple[EvaluationRow, ...]:
        groups: dict[tuple[str | None, int, Actions], list[Measurement]] = {}
        for measurement in self.measurements:
            key = (task_of(measurement), measurement.steps, measurement.actions)
            groups.setdefault(key, []).append(measurement)
        return tuple(_row(*key, group) for key, group in groups.items())


def evaluate(
    agent: Agent,
    *,
    tasks: int | None = None,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    on_task: Callable[[int, int], None] = lambda task, tasks: None,
) -> Evaluation:
    """Judge an agent on tasks and random numbers that training has not seen.

    For each task the agent collects a support set (of the size that it was trained with), takes
    an inner step, and so on; before the first and after every step its return is measured on
    episodes of their own.

    Args:
        agent: what :func:`maml_ray.load` gives.
        tasks: number of adaptations; ``evaluation.tasks`` of its settings by default.
        episodes: per adaptation, number of steps and way to act; ``evaluation.episodes`` by
            default.
        steps: adaptation steps; ``evaluation.steps`` by default, or else ``inner.steps``, and at
            least one.
        seed: of all the randomness in it.
        on_task: told the number of each adaptation as it begins, and how many there are.
    """
    settings = agent.settings
    tasks = tasks or settings.evaluation.tasks
    episodes = episodes or settings.evaluation.episodes
    if steps is None:
        steps = settings.evaluation.steps
    if steps is None:
        steps = max(1, settings.inner.steps)
    drawn = agent.sample_tasks(tasks, seed=seed)
    shown = _contrasting(drawn)
    measurements: list[Measurement] = []
    replays: dict[int, list[Episode]] = {index: [] for index in shown}
    with agent.simulations() as simulations:
        for index, task in enumerate(drawn):
            on_task(index, tasks)
            key = (seed, index)
            for adapted, step in _adaptations(agent, task, steps, key, simulations):
                for actions, measured, stream in _measured(
                    adapted, task, episodes, step, key, simulations
                ):
                    measurements.append(_measurement(task, index, step, actions, measured))
                    if index in replays and actions == "mean" and step in (0, steps):
                        first = reset_seeds(stream, episodes)[0]
                        replays[index].append(_episode(task, step, first, measured))
    pairs = tuple((pair[0], pair[-1]) for pair in replays.values())
    return Evaluation(tasks, episodes, seed, tuple(measurements), pairs)


def _adaptations(
    agent: Agent, task: Task, steps: int, key: tuple[int, int], simulations: EnvCache
) -> Iterator[tuple[Agent, int]]:
    """The agent after 0, 1, ... ``steps`` inner steps on ``task``, with fresh support each time."""
    for step in range(steps + 1):
        yield agent, step
        if step < steps:
            stream = _stream(key, step, _SUPPORT)
            agent = agent.adapt(agent.collect(task, seed=stream, simulations=simulations))


def _measured(
    agent: Agent,
    task: Task,
    episodes: int,
    step: int,
    key: tuple[int, int],
    simulations: EnvCache,
) -> Iterator[tuple[Actions, Trajectories, np.random.SeedSequence]]:
    for actions, kind in _KINDS:
        # Mean actions start from the same states after any number of steps: they can be compared
        # side by side.
        stream = _stream(key, step if kind == _STOCHASTIC else 0, kind)
        collected = agent.collect(
            task,
            episodes=episodes,
            seed=stream,
            explore=kind == _STOCHASTIC,
            simulations=simulations,
        )
        yield actions, collected, stream


def _stream(key: tuple[int, int], step: int, kind: int) -> np.random.SeedSequence:
    seed, index = key
    return seed_sequence(seed, Purpose.EVALUATION, index, step, kind)


def _measurement(
    task: Task, adaptation: int, steps: int, actions: Actions, measured: Trajectories
) -> Measurement:
    speeds = measured.speeds
    return Measurement(
        task=task,
        adaptation=adaptation,
        steps=steps,
        actions=actions,
        returns=tuple(measured.returns.tolist()),
        speeds=None if speeds is None else tuple(float(speed) for speed in speeds),
    )


def _episode(task: Task, steps: int, reset_seed: int, measured: Trajectories) -> Episode:
    return Episode(
        task=task,
        steps=steps,
        reset_seed=reset_seed,
        actions=measured.actions[0][measured.mask[0]],
        total=float(measured.returns[0]),
        speed=None if measured.speeds is None else float(measured.speeds[0]),
    )


def _row(task: str | None, steps: int, actions: Actions, group: list[Measurement]) -> EvaluationRow:
    returns = np.array([measurement.returns for measurement in group])
    low, high = bootstrap_interval(returns, [measurement.task for measurement in group])
    speeds = [measurement.speeds for measurement in group if measurement.speeds is not None]
    return EvaluationRow(
        task=task,
        steps=steps,
        actions=actions,
        mean=float(returns.mean()),
        low=low,
        high=high,
        speed=float(np.mean(speeds)) if speeds else None,
        episodes=returns.size,
    )


def _contrasting(tasks: tuple[Task, ...]) -> tuple[int, ...]:
    """Numbers of one task, or of two that differ: the least and the greatest by parameters."""
    ordered = sorted(range(len(tasks)), key=lambda index: (tasks[index].parameters, index))
    first, last = ordered[0], ordered[-1]
    return (first,) if tasks[first] == tasks[last] else (first, last)
