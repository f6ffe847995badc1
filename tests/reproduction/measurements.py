"""Read finished runs, and summarize their evaluations over seeds: all tasks, and each direction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maml_ray.evaluation.results import ActionMode
from maml_ray.evaluation.results_file import read_evaluation
from maml_ray.persistence.provenance import read_provenance
from maml_ray.reporting.run_groups import Group, Run, read_runs
from tests.reproduction.experiments import Experiment
from tests.reproduction.runs import few_episodes_file

MAX_NAMED_TASKS = 2
"""A family with so many tasks, such as two directions, has a row for each."""
_ACTIONS: tuple[ActionMode, ...] = ("stochastic", "mean")


@dataclass(frozen=True)
class Returns:
    """Mean returns of several seeds.

    Attributes:
        mean: mean over seeds.
        lowest, highest: mean return of the worst and of the best seed.
        seeds: number of seeds.
        speed: mean over seeds in m/s; None if the task reports no speed.
    """

    mean: float
    lowest: float
    highest: float
    seeds: int
    speed: float | None


@dataclass(frozen=True)
class TaskReturns:
    """Returns of one task, or of all together, with one way to act.

    Attributes:
        task: name of the task; None for all together.
        actions: sampled from the policy, or its mean.
        by_steps: returns by number of gradient steps.
        few_episodes: after one step on few episodes.
    """

    task: str | None
    actions: ActionMode
    by_steps: Mapping[int, Returns]
    few_episodes: Returns | None


@dataclass(frozen=True)
class Result:
    """What the finished runs of an experiment have measured.

    Attributes:
        experiment: the experiment.
        group: its finished runs, one per seed, at least one.
        few_episodes: content of the evaluation with few episodes, one per run.
    """

    experiment: Experiment
    group: Group
    few_episodes: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment.name

    @property
    def runs(self) -> tuple[Run, ...]:
        """The finished runs, one per seed."""
        return self.group.runs

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the finished runs."""
        return tuple(run.settings.run.seed for run in self.runs)

    @property
    def evaluations(self) -> tuple[Mapping[str, Any], ...]:
        """Content of ``evaluation.json`` of each run."""
        return tuple(run.evaluation for run in self.runs if run.evaluation is not None)

    @property
    def env_steps(self) -> float:
        """Environment steps of training, mean over seeds."""
        return float(np.mean([run.rows[-1]["total_env_steps"] for run in self.runs]))

    @property
    def minutes(self) -> float:
        """Minutes of training, mean over seeds."""
        return float(np.mean([run.rows[-1]["elapsed_s"] for run in self.runs])) / 60.0

    @property
    def machines(self) -> tuple[str, ...]:
        """The machines that trained the runs, each once."""
        attempts = (each for run in self.runs for each in read_provenance(run.run_dir))
        return tuple(dict.fromkeys(attempt.machine for attempt in attempts))

    @property
    def named_tasks(self) -> tuple[str, ...]:
        """Names of the tasks if there are two, else empty; first that of the higher parameter."""
        parameters = self.evaluations[0]["task_parameters"]
        names = {row["task"] for row in self.evaluations[0]["rows_by_task"]}
        if len(names) != MAX_NAMED_TASKS:
            return ()
        return tuple(sorted(names, key=lambda name: list(parameters.get(name, {}).values()))[::-1])

    def task_returns(self) -> Iterator[TaskReturns]:
        """Yield the returns of all tasks, then of each named task, sampled actions first."""
        for task in (None, *self.named_tasks):
            for actions in _ACTIONS:
                yield self.returns_of(task, actions)

    def returns_of(self, task: str | None, actions: ActionMode) -> TaskReturns:
        """Return what was measured of a task, None for all together."""
        by_steps = _by_steps(self.evaluations, task, actions)
        few = _by_steps(self.few_episodes, task, actions)
        return TaskReturns(task, actions, by_steps, few.get(1))

    def untrained(self) -> TaskReturns | None:
        """Return what the untrained policies have reached, with sampled actions."""
        rows = [each["beside"].get("random", ()) for each in self.evaluations]
        by_steps = _by_steps([{"rows": each} for each in rows], None, "stochastic")
        return TaskReturns(None, "stochastic", by_steps, None) if by_steps else None


def read_result(experiment: Experiment, folders: Sequence[Path]) -> Result:
    """Read the finished runs of an experiment.

    Raises:
        RunDirError: a file is missing or damaged.
    """
    runs = tuple(read_runs(folders))
    few = tuple(read_evaluation(few_episodes_file(run.run_dir)) for run in runs)
    return Result(experiment, Group(experiment.name, runs), few)


def _by_steps(
    evaluations: Sequence[Mapping[str, Any]], task: str | None, actions: ActionMode
) -> dict[int, Returns]:
    """Return statistics over seeds, by the numbers of steps that every seed has."""
    key = "rows" if task is None else "rows_by_task"
    by_seed = [
        {
            row["steps"]: row
            for row in evaluation[key]
            if (row["task"], row["actions"]) == (task, actions)
        }
        for evaluation in evaluations
    ]
    common = sorted(set.intersection(*(set(rows) for rows in by_seed)))
    return {step: _over_seeds([rows[step] for rows in by_seed]) for step in common}


def _over_seeds(rows: Sequence[Mapping[str, Any]]) -> Returns:
    means = [row["mean"] for row in rows]
    speeds = [row["speed"] for row in rows if row["speed"] is not None]
    return Returns(
        mean=float(np.mean(means)),
        lowest=min(means),
        highest=max(means),
        seeds=len(means),
        speed=float(np.mean(speeds)) if speeds else None,
    )
