"""Hold the returns that an evaluation measured, and summarize them by task and number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.common.html_table import html_table
from maml_ray.evaluation.intervals import format_interval, mean_interval
from maml_ray.tasks.task import Task, distinct_names

ActionMode = Literal["stochastic", "mean"]


@dataclass(frozen=True)
class Measurement:
    """Returns of one adaptation after some number of steps, with stochastic or mean actions.

    Attributes:
        task: task adapted to.
        adaptation: index of the adaptation; each has its own support sets.
        steps: adaptation steps taken; 0 is before adaptation.
        actions: sampled from the policy, or its mean.
        returns: undiscounted return of each episode.
        speeds: mean speed of each episode in m/s; None if the task reports no speed.
        infos: by name in ``task.info_metrics``, the mean of each episode; None for an episode that
            does not report it.
    """

    task: Task
    adaptation: int
    steps: int
    actions: ActionMode
    returns: tuple[float, ...]
    speeds: tuple[float, ...] | None
    infos: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationRow:
    """Statistics over measurements of equal steps and actions.

    Attributes:
        task: name of the task; None for all tasks together.
        steps: adaptation steps taken.
        actions: sampled from the policy, or its mean.
        mean: mean undiscounted return.
        low, high: 95% confidence interval of the mean
            (:func:`maml_ray.evaluation.intervals.mean_interval`); None after one adaptation.
        speed: mean speed in m/s; None if the task reports no speed.
        episodes: number of episodes.
        infos: by name in ``task.info_metrics``, the mean over the episodes that report it; None if
            none does.
    """

    task: str | None
    steps: int
    actions: ActionMode
    mean: float
    low: float | None
    high: float | None
    speed: float | None
    episodes: int
    infos: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationGain:
    """What adaptation adds to the return: the mean difference, paired by adaptation.

    Attributes:
        steps: adaptation steps taken, at least one.
        actions: sampled from the policy, or its mean.
        mean: mean undiscounted return after the steps minus that before.
        low, high: 95% confidence interval of the difference; None after one adaptation.
    """

    steps: int
    actions: ActionMode
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, eq=False)
class Episode:
    """One evaluated episode, with what is needed to replay it.

    Attributes:
        task: task of the episode.
        steps: adaptation steps taken before it.
        reset_seed: seed of its initial state.
        actions: (T, n) actions as recorded in :class:`Trajectories`.
        episode_return: undiscounted return.
        speed: mean speed in m/s; None if the task reports no speed.
    """

    task: Task
    steps: int
    reset_seed: int
    actions: NDArray[np.float32] = field(repr=False)
    episode_return: float
    speed: float | None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of :func:`maml_ray.evaluate`.

    Attributes:
        tasks: number of adaptations, each to a held-out task.
        episodes: episodes per adaptation, number of steps and action mode.
        seed: random seed.
        measurements: all measurements, ordered by adaptation, steps, action mode.
        replays: pairs of mean-action episodes before and after adaptation, from the same initial
            state, of the two tasks that differ most (of one if all are equal); empty if the
            evaluation was read from files, which do not hold the actions.
        adaptation_episodes: episodes in the support set of each step; None if the files that it
            was read from do not say.
    """

    tasks: int
    episodes: int
    seed: int
    measurements: tuple[Measurement, ...]
    replays: tuple[tuple[Episode, Episode], ...]
    adaptation_episodes: int | None = None

    def __repr__(self) -> str:
        return (
            f"Evaluation(tasks={self.tasks}, episodes={self.episodes}, seed={self.seed}, "
            f"{self.summary})"
        )

    def _repr_html_(self) -> str:
        columns = ("steps", "actions", "mean return", "95% interval", "m/s", *self.rows[0].infos)
        title = f"Evaluation: {self.tasks} tasks x {self.episodes} episodes"
        return html_table(title, columns, [_cells(row) for row in self.rows])

    @property
    def summary(self) -> str:
        """Mean returns with sampled actions before and after adaptation, in a few words."""
        last = max(measurement.steps for measurement in self.measurements)
        before, after = (self._mean_return(steps) for steps in (0, last))
        return (
            f"mean return {before:.1f} before adaptation"
            + f", {after:.1f} after {last} step{'' if last == 1 else 's'}" * (last > 0)
        )

    def to_dataframe(self) -> Any:
        """Return a pandas DataFrame with one row per episode.

        Columns: ``task`` (its name), ``adaptation`` (index), ``steps`` (taken before the episode),
        ``actions`` (``stochastic`` or ``mean``), ``episode`` (index), ``return`` (undiscounted),
        ``speed`` (mean in m/s, NaN if the task reports none), ``info_NAME`` for each name in
        ``task.info_metrics``, and ``task_KEY`` for each parameter KEY of the tasks, such as
        ``task_direction``.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise UserError("a data frame needs pandas: pip install pandas") from None
        return pandas.DataFrame.from_records(
            [row for measurement in self.measurements for row in _episode_records(measurement)]
        )

    @cached_property
    def rows(self) -> tuple[EvaluationRow, ...]:
        """Statistics over all tasks, by number of steps, stochastic before mean actions."""
        return self._rows(lambda measurement: None)

    @cached_property
    def rows_by_task(self) -> tuple[EvaluationRow, ...]:
        """Statistics for each distinct task, by its name in :attr:`task_names`."""
        names = self.task_names
        return self._rows(lambda measurement: names[measurement.task])

    @cached_property
    def task_names(self) -> dict[Task, str]:
        """The name of each distinct task, which no other one has."""
        return distinct_names(measurement.task for measurement in self.measurements)

    @cached_property
    def gains(self) -> tuple[EvaluationGain, ...]:
        """Gains after each number of steps, stochastic before mean actions.

        Their intervals are narrower than those of the returns: a task that is hard before
        adaptation is hard after it, too.
        """
        groups = self._group(lambda measurement: None)
        return tuple(
            _gain(steps, actions, groups[None, 0, actions], after)
            for (_, steps, actions), after in groups.items()
            if steps > 0
        )

    def row(self, steps: int, actions: ActionMode) -> EvaluationRow:
        """Return the row over all tasks for a number of steps and an action mode.

        Raises:
            KeyError: there is no such row.
        """
        for row in self.rows:
            if (row.steps, row.actions) == (steps, actions):
                return row
        raise KeyError(f"nothing was measured after {steps} steps with {actions} actions")

    def _mean_return(self, steps: int) -> float:
        """Return the mean return with sampled actions."""
        chosen = [m for m in self.measurements if (m.steps, m.actions) == (steps, "stochastic")]
        return float(np.mean([measurement.returns for measurement in chosen]))

    def _rows(self, task_of: Callable[[Measurement], str | None]) -> tuple[EvaluationRow, ...]:
        return tuple(_row(*key, group) for key, group in self._group(task_of).items())

    def _group(
        self, task_of: Callable[[Measurement], str | None]
    ) -> dict[tuple[str | None, int, ActionMode], list[Measurement]]:
        groups: dict[tuple[str | None, int, ActionMode], list[Measurement]] = {}
        for measurement in self.measurements:
            key = (task_of(measurement), measurement.steps, measurement.actions)
            groups.setdefault(key, []).append(measurement)
        return groups


def _row(
    task: str | None, steps: int, actions: ActionMode, group: list[Measurement]
) -> EvaluationRow:
    returns = np.array([measurement.returns for measurement in group])
    low, high = _interval(returns.mean(axis=1), group)
    speeds = [speed for each in group for speed in each.speeds or () if not np.isnan(speed)]
    return EvaluationRow(
        task=task,
        steps=steps,
        actions=actions,
        mean=float(returns.mean()),
        low=low,
        high=high,
        speed=float(np.mean(speeds)) if speeds else None,
        episodes=returns.size,
        infos={name: _mean_info(group, name) for name in group[0].infos},
    )


def _mean_info(group: list[Measurement], name: str) -> float | None:
    """Return the mean over the episodes that report it."""
    values = [value for each in group for value in each.infos[name] if value is not None]
    return float(np.mean(values)) if values else None


def _gain(
    steps: int, actions: ActionMode, before: list[Measurement], after: list[Measurement]
) -> EvaluationGain:
    """Return the gain of the same adaptations, in the same order."""
    means = [np.mean([each.returns for each in group], axis=1) for group in (before, after)]
    differences = means[1] - means[0]
    return EvaluationGain(steps, actions, float(differences.mean()), *_interval(differences, after))


def _interval(
    values: NDArray[np.float64], group: list[Measurement]
) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of the mean of one value per measurement."""
    return mean_interval(values, [measurement.task for measurement in group]) or (None, None)


def _cells(row: EvaluationRow) -> tuple[str, ...]:
    interval = format_interval(row.low, row.high)
    speed = "" if row.speed is None else f"{row.speed:.2f}"
    infos = ("" if value is None else f"{value:.3g}" for value in row.infos.values())
    return str(row.steps), row.actions, f"{row.mean:.1f}", interval, speed, *infos


def _episode_records(measurement: Measurement) -> Iterator[dict[str, Any]]:
    task = measurement.task
    speeds = measurement.speeds or (float("nan"),) * len(measurement.returns)
    for episode, (value, speed) in enumerate(zip(measurement.returns, speeds, strict=True)):
        yield {
            "task": task.name,
            "adaptation": measurement.adaptation,
            "steps": measurement.steps,
            "actions": measurement.actions,
            "episode": episode,
            "return": value,
            "speed": speed,
            **{f"info_{name}": values[episode] for name, values in measurement.infos.items()},
            **{f"task_{key}": parameter for key, parameter in task.parameters},
        }
