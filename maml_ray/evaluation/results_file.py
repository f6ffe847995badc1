"""What an evaluation leaves behind: figures as JSON for programs, episodes as CSV for pandas."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maml_ray.common.errors import RunDirError
from maml_ray.common.safe_files import Unreadable, read_text, write_whole
from maml_ray.config.settings import Settings
from maml_ray.evaluation.evaluate import Evaluation
from maml_ray.evaluation.evaluation_schema import figures_of

COLUMNS = ("policy", "task", "parameters", "adaptation", "steps", "actions", "episode", "return")
"""Of the CSV, one line an episode; ``speed`` follows, empty where the task tells none."""
_MOST_BYTES = 200_000_000


def evaluation_to_dict(
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
        RunDirError: a file cannot be written.
    """
    figures = evaluation_to_dict(evaluation, settings, beside)
    try:
        write_whole(json_path, json.dumps(figures, indent=2) + "\n")
        write_whole(csv_path, _table({settings.run.name: evaluation, **beside}))
    except OSError as error:
        place = error.filename2 or error.filename or json_path
        raise RunDirError(f"cannot write {place}: {error.strerror}") from None
    return figures


def read_evaluation(path: Path) -> dict[str, Any]:
    """The figures of ``evaluation.json``.

    Raises:
        RunDirError: the file is damaged.
    """
    try:
        return figures_of(read_text(path, most=_MOST_BYTES))
    except (Unreadable, ValueError) as error:
        raise RunDirError(
            f"{path} does not hold an evaluation: run 'maml-ray evaluate {path.parent}' again "
            f"({error})"
        ) from None


def _table(everyone: Mapping[str, Evaluation]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow((*COLUMNS, "speed"))
    for name, one in everyone.items():
        writer.writerows(_lines(name, one))
    return text.getvalue()


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
