"""Evaluate a run and write metrics, episodes, video and report to its directory, without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from dataclasses import dataclass, field, replace
from html import escape
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

from maml_ray.common.errors import RunDirError
from maml_ray.common.html_table import html_table
from maml_ray.common.versions import versions
from maml_ray.config import limits
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import SettingsError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.compatibility import check_matches_task
from maml_ray.evaluation.evaluate import evaluate
from maml_ray.evaluation.loading import load
from maml_ray.evaluation.results import Evaluation
from maml_ray.evaluation.results_file import read_episodes, read_evaluation, write_evaluation
from maml_ray.evaluation.video import VideoUnavailable, record_video
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir, check_writable, open_run_dir
from maml_ray.reporting.html import write_report
from maml_ray.reporting.tensorboard_evaluation import write_tensorboard_evaluation
from maml_ray.tasks.loading import OwnTasks


@dataclass(frozen=True)
class EvaluationConfig:
    """What to evaluate and how; None stands for the run's own setting.

    Attributes:
        tasks: number of held-out tasks.
        episodes: episodes per task, number of adaptation steps and action mode.
        steps: adaptation steps.
        adaptation_episodes: episodes in the support set of each step.
        seed: random seed.
        inner_rate: replaces the run's inner learning rate.
        baselines: run directories whose policies are evaluated on the same tasks.
        untrained: also evaluate the randomly initialized policy.
        checkpoint: "newest", "best" or a checkpoint number.
        video: record a video.
        video_path: video file; in the run directory by default.
        own_tasks: tasks of the run if they were given in Python.
    """

    tasks: int | None = None
    episodes: int | None = None
    steps: int | None = None
    adaptation_episodes: int | None = None
    seed: int = 0
    inner_rate: float | None = None
    baselines: tuple[Path, ...] = ()
    untrained: bool = False
    checkpoint: str = "newest"
    video: bool = True
    video_path: Path | None = None
    own_tasks: OwnTasks | None = None


@dataclass(frozen=True)
class RunResult:
    """A finished run, with everything that its directory holds.

    Attributes:
        folder: run directory; its attributes are the paths in it, such as ``folder.report``.
        evaluation: evaluation of the trained policy.
        results: content of ``evaluation.json``.
        notes: messages for the user, such as why there is no video.
        own_tasks: tasks of the run if they were given in Python.
    """

    folder: RunDir
    evaluation: Evaluation
    results: dict[str, Any] = field(repr=False)
    notes: tuple[str, ...] = ()
    own_tasks: OwnTasks | None = None

    def __repr__(self) -> str:
        return f"RunResult({str(self.folder.path)!r}, {self.evaluation.summary})"

    def _repr_html_(self) -> str:
        table = html_table("Run", (), [("directory", str(self.folder.path))])
        files = {"report": self.folder.report, "video": self.folder.video}
        links = " · ".join(
            f'<a href="{escape(quote(os.path.relpath(path)))}" target="_blank">{name}</a>'
            for name, path in files.items()
            if path.exists()
        )
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"{table}{self.evaluation._repr_html_()}<p>{links}</p>{notes}"

    @property
    def history(self) -> list[dict[str, Any]]:
        """Metrics of each iteration, as in ``metrics.jsonl``: ``pandas.DataFrame(result.history)``.

        Raises:
            RunDirError: the file cannot be read.
        """
        return read_metrics(self.folder.metrics)

    def load(self) -> Agent:
        """Load the trained policy."""
        return load(self.folder.path, tasks=self.own_tasks)


def read_result(run_dir: RunDir, own_tasks: OwnTasks | None = None) -> RunResult:
    """Return the result of a run that was evaluated earlier, from the files in its directory.

    Raises:
        RunDirError: a file is missing or damaged.
    """
    evaluation = read_episodes(run_dir.evaluation, run_dir.episodes)
    return RunResult(run_dir, evaluation, read_evaluation(run_dir.evaluation), (), own_tasks)


def evaluate_run(
    run_dir: RunDir,
    config: EvaluationConfig = EvaluationConfig(),
    *,
    on_status: Callable[[str], None] = lambda message: None,
) -> RunResult:
    """Evaluate a run's checkpoint; write metrics, episodes, video and report.

    Without OpenGL there is no video, and a note names the remedy.

    Args:
        run_dir: directory of the run.
        config: what to evaluate and how.
        on_status: receives what is being done.

    Raises:
        SettingsError: a baseline was trained on other tasks, or ``inner_rate`` is given although
            the run has learned its inner rates.
        RunDirError: a run cannot be read, or a file cannot be written.
    """
    on_status("loading the policy")
    agent = load(run_dir.path, checkpoint=config.checkpoint, tasks=config.own_tasks)
    agent = override_inner_rate(agent, config.inner_rate)
    check_matches_task(agent, run_dir.path)
    check_evaluation_size(agent, config)
    check_writable(run_dir.evaluation, run_dir.episodes, run_dir.plots, run_dir.report)
    _read_metrics(run_dir)  # fail on damaged metrics before evaluating
    baselines = _load_baselines(agent, config)
    evaluation = evaluate_agent(agent, config, _report_task(on_status, "evaluating"))
    baseline_evaluations = {
        name: evaluate_agent(
            baseline, config, _report_task(on_status, f"evaluating baseline {name}")
        )
        for name, baseline in baselines.items()
    }
    results = write_evaluation(
        evaluation, agent.settings, baseline_evaluations, run_dir.evaluation, run_dir.episodes
    )
    notes: list[str] = []
    if config.video:
        try:
            path = config.video_path or run_dir.video
            record_video(agent, evaluation.replays, path, on_frame=_report_frame(on_status))
        except VideoUnavailable as error:
            notes.append(str(error))
    on_status("writing plots and report")
    report_run(run_dir, results)
    return RunResult(run_dir, evaluation, results, tuple(notes), config.own_tasks)


def evaluate_agent(
    agent: Agent, config: EvaluationConfig, on_task: Callable[[int, int], None]
) -> Evaluation:
    """Evaluate ``agent``; ``on_task`` receives the index and the number of tasks before each."""
    return evaluate(
        agent,
        tasks=config.tasks,
        episodes=config.episodes,
        steps=config.steps,
        adaptation_episodes=config.adaptation_episodes,
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
    problem = limits.evaluation_problem(
        tasks, episodes, config.steps or 0, horizon, prefix="--"
    ) or limits.episodes_problem(config.adaptation_episodes or 1, horizon, "--adaptation-episodes")
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
        name = _unused_name(baseline.settings.run.name, {agent.settings.run.name, *baselines})
        baselines[name] = _with_evaluation_settings_of(agent, baseline)
    if config.untrained:
        name = _unused_name("random", {agent.settings.run.name, *baselines})
        baselines[name] = agent.untrained()
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


def _unused_name(name: str, used: Set[str]) -> str:
    candidates = (name if number == 1 else f"{name} ({number})" for number in count(1))
    return next(candidate for candidate in candidates if candidate not in used)


def _read_metrics(run_dir: RunDir) -> list[dict[str, Any]]:
    return read_metrics(run_dir.metrics) if os.path.lexists(run_dir.metrics) else []


def _report_task(on_status: Callable[[str], None], doing: str) -> Callable[[int, int], None]:
    return lambda task, tasks: on_status(f"{doing}: task {task + 1} of {tasks}")


def _report_frame(on_status: Callable[[str], None]) -> Callable[[int, int], None]:
    return lambda frame, frames: on_status(f"recording the video: frame {frame} of {frames}")
