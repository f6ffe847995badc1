"""What an evaluation leaves behind: figures as JSON for programs, episodes as CSV for pandas."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maml_ray.config import Settings
from maml_ray.errors import RunFolderError
from maml_ray.evaluation import Evaluation

COLUMNS = ("policy", "task", "parameters", "adaptation", "steps", "actions", "episode", "return")
"""Of the CSV, one line an episode; ``speed`` follows, empty where the task tells none."""


def evaluation_figures(
    evaluation: Evaluation, settings: Settings, beside: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """The figures as plain data: the content of ``evaluation.json``.

    Args:
        evaluation: of the run's policy.
        settings: of the run; what makes returns comparable or not goes into the file.
        beside: of other policies by the same protocol, by name.
    """
    return {
        "task": settings.task.name,
        "horizon": settings.task.horizon,
        "preset": settings.run.preset,
        "inner_steps_in_training": settings.inner.steps,
        "tasks": evaluation.tasks,
        "episodes": evaluation.episodes,
        "seed": evaluation.seed,
        "rows": _plain(evaluation),
        "rows_by_task": [asdict(row) for row in evaluation.rows_by_task],
        "beside": {name: _plain(other) for name, other in beside.items()},
    }


def write_evaluation(
    evaluation: Evaluation,
    settings: Settings,
    beside: Mapping[str, Evaluation],
    json_path: Path,
    csv_path: Path,
) -> dict[str, Any]:
    """Write both files, each whole or not at all; gives the figures.

    Raises:
        RunFolderError: a file cannot be written.
    """
    figures = evaluation_figures(evaluation, settings, beside)
    try:
        _replace(json_path, json.dumps(figures, indent=2) + "\n")
        everyone = {settings.run.name: evaluation, **beside}
        aside = csv_path.with_suffix(".partial")
        with aside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow((*COLUMNS, "speed"))
            for name, one in everyone.items():
                writer.writerows(_lines(name, one))
        os.replace(aside, csv_path)
    except OSError as error:
        raise RunFolderError(f"cannot write {error.filename}: {error.strerror}") from None
    return figures


def read_evaluation(path: Path) -> dict[str, Any]:
    """The figures of ``evaluation.json``.

    Raises:
        RunFolderError: the file is damaged.
    """
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(figures, dict) or not {"tasks", "episodes", "rows"} <= set(figures):
            raise ValueError
        return figures
    except (OSError, ValueError, RecursionError):
        raise RunFolderError(
            f"{path} does not hold an evaluation: run 'maml-ray evaluate {path.parent}' again"
        ) from None


def _plain(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [asdict(row) for row in evaluation.rows]


def _lines(name: str, evaluation: Evaluation) -> Iterator[tuple[Any, ...]]:
    for one in evaluation.measurements:
        parameters = json.dumps(dict(one.task.parameters))
        speeds = one.speeds or ("",) * len(one.returns)
        for episode, (value, speed) in enumerate(zip(one.returns, speeds, strict=True)):
            yield (
                name,
                one.task.name,
                parameters,
                one.adaptation,
                one.steps,
                one.actions,
                episode,
                value,
                speed,
            )


def _replace(path: Path, text: str) -> None:
    aside = path.with_suffix(".partial")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
