"""The evaluation of a run: figures, episodes, video and report in its folder. No Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from maml_ray.common.errors import RunDirError
from maml_ray.common.versions import versions
from maml_ray.config import limits
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import SettingsError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.compatibility import check_matches_task
from maml_ray.evaluation.evaluate import Evaluation, evaluate
from maml_ray.evaluation.loading import load
from maml_ray.evaluation.results_file import write_evaluation
from maml_ray.evaluation.video import VideoUnavailable, record_video
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir, check_writable, open_run_dir
from maml_ray.reporting.html import write_report


@dataclass(frozen=True)
class EvaluationConfig:
    """How a run is judged; None is what its settings say.

    Attributes:
        tasks: adaptations.
        episodes: per adaptation, number of steps and way to act.
        steps: adaptation steps.
        seed: of all the randomness.
        inner_rate: in place of the run's inner learning rate.
        baselines: run folders whose policies are judged alike, for comparison.
        untrained: whether the randomly initialized policy is, too.
        checkpoint: of the run: newest, best, or its number.
        video: whether one is recorded.
        video_path: where, if not in the run folder.
    """

    tasks: int | None = None
    episodes: int | None = None
    steps: int | None = None
    seed: int = 0
    inner_rate: float | None = None
    baselines: tuple[Path, ...] = ()
    untrained: bool = False
    checkpoint: str = "newest"
    video: bool = True
    video_path: Path | None = None


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: where everything is.
        evaluation: of the trained policy; None where a run that was done had been evaluated before.
        figures: the content of ``evaluation.json``.
        notes: sentences that a person should read, such as why there is no video.
    """

    folder: RunDir
    evaluation: Evaluation | None
    results: dict[str, Any]
    notes: tuple[str, ...]

    def load(self) -> Agent:
        """The trained policy."""
        return load(self.folder.path)


def evaluate_run(
    folder: RunDir,
    config: EvaluationConfig = EvaluationConfig(),
    *,
    console: Console | None = None,
) -> RunResult:
    """Evaluate a run's checkpoint, and write figures, episodes, video and report.

    Without a working OpenGL there is no video, and a note says what would help.

    Raises:
        SettingsError: a policy to be judged beside is of other tasks, or the inner rate is
            learned and cannot be replaced.
        RunDirError: a run cannot be read, or a file not be written.
    """
    agent = override_inner_rate(load(folder.path, checkpoint=config.checkpoint), config.inner_rate)
    check_matches_task(agent, folder.path)
    check_evaluation_size(agent, config)
    check_writable(folder.evaluation, folder.episodes, folder.plots, folder.report)
    _rows(folder)
    others = _beside(agent, config)
    with _told(console or Console(quiet=True)) as tell:
        judged = {
            name: evaluate(
                one,
                tasks=config.tasks,
                episodes=config.episodes,
                steps=config.steps,
                seed=config.seed,
                on_task=tell(name),
            )
            for name, one in {"": agent, **others}.items()
        }
    evaluation = judged.pop("")
    results = write_evaluation(
        evaluation, agent.settings, judged, folder.evaluation, folder.episodes
    )
    notes: list[str] = []
    if config.video:
        try:
            record_video(agent, evaluation.replays, config.video_path or folder.video)
        except VideoUnavailable as error:
            notes.append(str(error))
    report_run(folder, results)
    return RunResult(folder, evaluation, results, tuple(notes))


def report_run(folder: RunDir, results: dict[str, Any] | None) -> Path:
    """Plots and report of what the run folder holds.

    Raises:
        RunDirError: the metrics are damaged, or a file cannot be written.
    """
    from maml_ray.reporting.plots import (
        write_plots,  # imports matplotlib: not before training begins
    )

    rows, settings = _rows(folder), load_settings(folder.settings)
    check_writable(folder.plots, folder.report)
    try:
        write_plots(rows, results, folder)
        return write_report(folder, settings, rows, results, versions())
    except OSError as error:
        place = error.filename2 or error.filename or folder.path
        raise RunDirError(f"cannot write the report: {place}: {error.strerror}") from None


def _rows(folder: RunDir) -> list[dict[str, Any]]:
    return read_metrics(folder.metrics) if os.path.lexists(folder.metrics) else []


def check_evaluation_size(agent: Agent, config: EvaluationConfig) -> None:
    """Refuse an evaluation that would never end.

    Raises:
        SettingsError: ``config`` asks for too much.
    """
    judged, horizon = agent.settings.evaluation, agent.settings.task.horizon
    tasks, episodes = config.tasks or judged.tasks, config.episodes or judged.episodes
    problem = limits.evaluation(tasks, episodes, config.steps or 0, horizon, prefix="--")
    if problem:
        raise SettingsError(problem)


def override_inner_rate(agent: Agent, rate: float | None) -> Agent:
    """``agent`` with another inner rate, if one is given.

    Raises:
        SettingsError: the run has learned its rates.
    """
    if rate is None:
        return agent
    if agent.settings.inner.learn_inner_rates:
        raise SettingsError("the run has learned its inner rates: leave --inner-rate out")
    inner = agent.settings.inner.model_copy(update={"learning_rate": rate})
    return replace(agent, settings=agent.settings.model_copy(update={"inner": inner}))


def _beside(agent: Agent, config: EvaluationConfig) -> dict[str, Agent]:
    """The other policies by name, each ready for the same tasks and the same number of steps."""
    others: dict[str, Agent] = {}
    tasks = config.tasks or agent.settings.evaluation.tasks
    drawn = agent.sample_tasks(tasks, seed=config.seed)
    for path in config.baselines:
        other = load(open_run_dir(path).path)
        same_horizon = other.settings.task.horizon == agent.settings.task.horizon
        if not same_horizon or other.sample_tasks(tasks, seed=config.seed) != drawn:
            raise SettingsError(
                f"{path} was trained on {_named(other)}, the run on {_named(agent)}: "
                "their returns cannot be compared"
            )
        others[_free(other.settings.run.name, others)] = _judged_alike(other, agent)
    if config.untrained:
        others[_free("random", others)] = agent.untrained()
    return others


def _judged_alike(other: Agent, agent: Agent) -> Agent:
    """``other`` with the evaluation settings of ``agent``: sizes and number of steps."""
    evaluation = agent.settings.evaluation
    if evaluation.steps is None:
        steps = max(1, agent.settings.inner.steps)
        evaluation = evaluation.model_copy(update={"steps": steps})
    settings = other.settings.model_copy(update={"evaluation": evaluation})
    return replace(other, settings=settings)


def _named(agent: Agent) -> str:
    task = agent.settings.task
    options = f" {task.options}" if task.options else ""
    return f"{task.name}{options} over {task.horizon} steps"


def _free(name: str, taken: dict[str, Agent]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free


@contextmanager
def _told(console: Console) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """A line that tells which task is being evaluated: 40 of them take a minute."""
    if not console.is_terminal:
        console.print("evaluating ...", style="dim")
        yield lambda name: lambda task, tasks: None
        return
    with console.status("evaluating ...") as status:
        yield (
            lambda name: (
                lambda task, tasks: status.update(
                    f"evaluating {name + ': ' if name else ''}task {task + 1} of {tasks}"
                )
            )
        )
