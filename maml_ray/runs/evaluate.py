"""Evaluate a run and write metrics, episodes, video and report to its directory, without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
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
from maml_ray.reporting.tensorboard_evaluation import write_tensorboard_evaluation


@dataclass(frozen=True)
class EvaluationConfig:
    """What to evaluate and how; None stands for the run's own setting.

    Attributes:
        tasks: number of held-out tasks.
        episodes: episodes per task, number of adaptation steps and action mode.
        steps: adaptation steps.
        seed: random seed.
        inner_rate: replaces the run's inner learning rate.
        baselines: run directories whose policies are evaluated on the same tasks.
        untrained: also evaluate the randomly initialized policy.
        checkpoint: "newest", "best" or a checkpoint number.
        video: record a video.
        video_path: video file; in the run directory by default.
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
        folder: run directory.
        evaluation: evaluation of the trained policy; None if the run was evaluated earlier.
        results: content of ``evaluation.json``.
        notes: messages for the user, such as why there is no video.
    """

    folder: RunDir
    evaluation: Evaluation | None
    results: dict[str, Any]
    notes: tuple[str, ...]

    def load(self) -> Agent:
        """Load the trained policy."""
        return load(self.folder.path)


def evaluate_run(
    run_dir: RunDir,
    config: EvaluationConfig = EvaluationConfig(),
    *,
    console: Console | None = None,
) -> RunResult:
    """Evaluate a run's checkpoint; write metrics, episodes, video and report.

    Without OpenGL there is no video, and a note names the remedy.

    Raises:
        SettingsError: a baseline was trained on other tasks, or ``inner_rate`` is given although
            the run has learned its inner rates.
        RunDirError: a run cannot be read, or a file cannot be written.
    """
    agent = override_inner_rate(load(run_dir.path, checkpoint=config.checkpoint), config.inner_rate)
    check_matches_task(agent, run_dir.path)
    check_evaluation_size(agent, config)
    check_writable(run_dir.evaluation, run_dir.episodes, run_dir.plots, run_dir.report)
    _read_metrics(run_dir)  # fail on damaged metrics before evaluating
    baselines = _load_baselines(agent, config)
    with _progress_line(console or Console(quiet=True)) as on_task:
        evaluation = evaluate_agent(agent, config, partial(on_task, ""))
        baseline_evaluations = {
            name: evaluate_agent(baseline, config, partial(on_task, f"{name}: "))
            for name, baseline in baselines.items()
        }
    results = write_evaluation(
        evaluation, agent.settings, baseline_evaluations, run_dir.evaluation, run_dir.episodes
    )
    notes: list[str] = []
    if config.video:
        try:
            record_video(agent, evaluation.replays, config.video_path or run_dir.video)
        except VideoUnavailable as error:
            notes.append(str(error))
    report_run(run_dir, results)
    return RunResult(run_dir, evaluation, results, tuple(notes))


def evaluate_agent(
    agent: Agent, config: EvaluationConfig, on_task: Callable[[int, int], None]
) -> Evaluation:
    """Evaluate ``agent``; ``on_task`` receives the index and the number of tasks before each."""
    return evaluate(
        agent,
        tasks=config.tasks,
        episodes=config.episodes,
        steps=config.steps,
        seed=config.seed,
        on_task=on_task,
    )


def report_run(run_dir: RunDir, results: dict[str, Any] | None) -> Path:
    """Write report, plots and TensorBoard's evaluation from the files of a run.

    Raises:
        RunDirError: the metrics are damaged, or a file cannot be written.
    """
    from maml_ray.reporting.svg import write_plots  # matplotlib would delay the start of training

    rows, settings = _read_metrics(run_dir), load_settings(run_dir.settings, recorded=True)
    check_writable(run_dir.plots, run_dir.report, run_dir.tensorboard)
    try:
        if results is not None:
            iteration = rows[-1]["iteration"] if rows else 0
            write_tensorboard_evaluation(run_dir, results, iteration=iteration)
        plots = write_plots(rows, results, run_dir)
        return write_report(run_dir, settings, rows, results, versions(), plots)
    except OSError as error:
        path = error.filename2 or error.filename or run_dir.path
        raise RunDirError(f"cannot write the report: {path}: {error.strerror}") from None


def check_evaluation_size(agent: Agent, config: EvaluationConfig) -> None:
    """Reject an evaluation that would not end in reasonable time.

    Raises:
        SettingsError: ``config`` asks for too many tasks, episodes or steps.
    """
    defaults, horizon = agent.settings.evaluation, agent.settings.task.horizon
    tasks, episodes = config.tasks or defaults.tasks, config.episodes or defaults.episodes
    problem = limits.evaluation_problem(tasks, episodes, config.steps or 0, horizon, prefix="--")
    if problem:
        raise SettingsError(problem)


def override_inner_rate(agent: Agent, rate: float | None) -> Agent:
    """Return ``agent`` with the inner learning rate ``rate``; unchanged if it is None.

    Raises:
        SettingsError: the run has learned its inner rates.
    """
    if rate is None:
        return agent
    if agent.settings.inner.learn_inner_rates:
        raise SettingsError("the run has learned its inner rates: leave --inner-rate out")
    inner = agent.settings.inner.model_copy(update={"learning_rate": rate})
    return replace(agent, settings=agent.settings.model_copy(update={"inner": inner}))


def _load_baselines(agent: Agent, config: EvaluationConfig) -> dict[str, Agent]:
    """Load the baselines, by name, to be evaluated on the tasks and steps of ``agent``."""
    baselines: dict[str, Agent] = {}
    num_tasks = config.tasks or agent.settings.evaluation.tasks
    tasks = agent.sample_tasks(num_tasks, seed=config.seed)
    for path in config.baselines:
        baseline = load(open_run_dir(path).path)
        same_horizon = baseline.settings.task.horizon == agent.settings.task.horizon
        if not same_horizon or baseline.sample_tasks(num_tasks, seed=config.seed) != tasks:
            raise SettingsError(
                f"{path} was trained on {_describe_task(baseline)}, the run on "
                f"{_describe_task(agent)}: their returns cannot be compared"
            )
        name = _unused_name(baseline.settings.run.name, baselines)
        baselines[name] = _with_evaluation_settings_of(agent, baseline)
    if config.untrained:
        baselines[_unused_name("random", baselines)] = agent.untrained()
    return baselines


def _with_evaluation_settings_of(agent: Agent, baseline: Agent) -> Agent:
    """Return ``baseline`` with the evaluation settings and number of steps of ``agent``."""
    evaluation = agent.settings.evaluation
    if evaluation.steps is None:
        steps = max(1, agent.settings.inner.steps)
        evaluation = evaluation.model_copy(update={"steps": steps})
    settings = baseline.settings.model_copy(update={"evaluation": evaluation})
    return replace(baseline, settings=settings)


def _describe_task(agent: Agent) -> str:
    task = agent.settings.task
    options = f" {task.options}" if task.options else ""
    return f"{task.name}{options} over {task.horizon} steps"


def _unused_name(name: str, used: dict[str, Agent]) -> str:
    candidates = (name if number == 1 else f"{name} ({number})" for number in count(1))
    return next(candidate for candidate in candidates if candidate not in used)


def _read_metrics(run_dir: RunDir) -> list[dict[str, Any]]:
    return read_metrics(run_dir.metrics) if os.path.lexists(run_dir.metrics) else []


@contextmanager
def _progress_line(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show which task is being evaluated; yield the callback: prefix, task index, tasks."""
    if not console.is_terminal:
        console.print("evaluating ...", style="dim")
        yield lambda prefix, task, tasks: None
        return
    with console.status("evaluating ...") as status:
        yield lambda prefix, task, tasks: status.update(
            f"evaluating {prefix}task {task + 1} of {tasks}"
        )
