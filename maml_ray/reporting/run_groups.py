"""Read runs, and group those whose settings differ only in the seed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maml_ray.common.errors import RunDirError
from maml_ray.config.loading import load_settings
from maml_ray.config.section import by_key
from maml_ray.config.settings import Settings
from maml_ray.evaluation.results_file import read_evaluation
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir, open_run_dir

_IGNORED_SECTIONS = {"run", "cluster", "evaluation"}
"""Sections of the settings that may differ within a group."""


@dataclass(frozen=True)
class Run:
    """Content of a run directory.

    Attributes:
        run_dir: run directory.
        settings: settings of the run.
        rows: rows of ``metrics.jsonl``, at least one.
        evaluation: content of ``evaluation.json``; None if the run has not been evaluated.
    """

    run_dir: RunDir
    settings: Settings
    rows: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None


@dataclass(frozen=True)
class Group:
    """Runs whose settings differ only in the seed.

    Attributes:
        label: label that distinguishes it from the other groups.
        runs: one run per seed.
    """

    label: str
    runs: tuple[Run, ...]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read the runs at ``paths``.

    Args:
        paths: run directories, or folders that contain some.

    Raises:
        RunDirError: a path has no run, or a run is damaged or has not finished an iteration.
    """
    run_dirs: list[RunDir] = []
    for path in paths:
        inside = sorted(path.glob("*/settings.yaml")) if os.path.isdir(path) else []
        if inside and not os.path.lexists(path / "settings.yaml"):
            run_dirs += [open_run_dir(settings.parent) for settings in inside]
        else:
            run_dirs.append(open_run_dir(path))
    return [_read(run_dir) for run_dir in run_dirs]


def without_duplicates(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return each run once, and a sentence on each that is left out.

    Two directories hold the same run if they are the same directory or if one is a copy: equal
    settings and equal rows of metrics, which include measured times.
    """
    kept: list[Run] = []
    notes = []
    for run in runs:
        twin = next((other for other in kept if _is_same(run, other)), None)
        if twin is None:
            kept.append(run)
        elif run.run_dir.path == twin.run_dir.path:
            notes.append(f"{run.run_dir.path} was given twice and is counted once")
        else:
            notes.append(
                f"{run.run_dir.path} is the same run as {twin.run_dir.path} and is counted once"
            )
    return kept, notes


def group_by_settings(runs: Sequence[Run]) -> list[Group]:
    """Group runs by the settings that affect learning, ordered by first occurrence."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(_learning_settings(run.settings)), []).append(run)
    labels = _labels([members[0].settings for members in groups.values()])
    return [
        Group(label, tuple(members)) for label, members in zip(labels, groups.values(), strict=True)
    ]


def describe_different_tasks(groups: Sequence[Group]) -> list[str]:
    """Return a sentence if the groups' tasks differ, so that returns are of different things."""
    differing = _differing_keys([group.runs[0].settings for group in groups])
    # A policy that observes the task is a usual baseline of one that does not.
    same_returns = {"task.observe_parameters"}
    keys = [key for key in differing if key.startswith("task.") and key not in same_returns]
    return [f"the runs differ in {', '.join(keys)}: do not compare their returns"] if keys else []


def _read(run_dir: RunDir) -> Run:
    settings = load_settings(run_dir.settings, recorded=True)
    rows = read_metrics(run_dir.metrics) if os.path.lexists(run_dir.metrics) else []
    if not rows:
        raise RunDirError(f"{run_dir.path} has not finished an iteration")
    evaluated = os.path.lexists(run_dir.evaluation)
    evaluation = read_evaluation(run_dir.evaluation) if evaluated else None
    return Run(run_dir, settings, rows, evaluation)


def _learning_settings(settings: Settings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=_IGNORED_SECTIONS)


def _labels(settings: Sequence[Settings]) -> list[str]:
    """Return run names if they are distinct, else settings that differ: four, or all if needed."""
    names = [each.run.name for each in settings]
    if len(set(names)) == len(names):
        return names
    keys = _differing_keys(settings)
    flattened = [_by_key(each) for each in settings]
    for number in (4, len(keys)):
        labels = [
            ", ".join(f"{key.rpartition('.')[2]}={each.get(key)}" for key in keys[:number]) or name
            for each, name in zip(flattened, names, strict=True)
        ]
        if len(set(labels)) == len(labels):
            break
    return labels


def _by_key(settings: Settings) -> dict[str, Any]:
    return dict(by_key(Settings, _learning_settings(settings)))


def _differing_keys(settings: Sequence[Settings]) -> list[str]:
    flattened = [_by_key(each) for each in settings]
    return [key for key in flattened[0] if len({repr(each.get(key)) for each in flattened}) > 1]


def _is_same(run: Run, other: Run) -> bool:
    if os.path.realpath(run.run_dir.path) == os.path.realpath(other.run_dir.path):
        return True
    return run.settings == other.settings and run.rows == other.rows
