"""Write and read the results of an evaluation: statistics as JSON, episodes as CSV."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from maml_ray.common.commands import quote_location
from maml_ray.common.errors import RunDirError
from maml_ray.common.safe_files import UnreadableFile, read_text, write_atomic
from maml_ray.config.settings import Settings
from maml_ray.evaluation.results import ActionMode, Evaluation, Measurement
from maml_ray.tasks.task import Task

COLUMNS = ("policy", "task", "parameters", "adaptation", "steps", "actions", "episode", "return")
"""Columns of the CSV, which has one line per episode; a column ``speed`` follows, empty if the task
reports no speed, and ``info_NAME`` for each name in ``task.info_metrics``."""
_INFO = "info_"
_MEASUREMENT_KEYS = ("policy", "adaptation", "steps", "actions")
_MAX_BYTES = 200_000_000
_MAX_MAGNITUDE = 1e30


def evaluation_to_dict(
    evaluation: Evaluation, settings: Settings, baselines: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """Return the content of ``evaluation.json``.

    Args:
        evaluation: evaluation of the run's policy.
        settings: settings of the run; those that decide whether returns can be compared are
            included.
        baselines: evaluations of other policies on the same tasks and seeds, by name.
    """
    return {
        "task": settings.task.name,
        "horizon": settings.task.horizon,
        "preset": settings.run.preset,
        "inner_steps_in_training": settings.inner.steps,
        "tasks": evaluation.tasks,
        "episodes": evaluation.episodes,
        "adaptation_episodes": evaluation.adaptation_episodes,
        "seed": evaluation.seed,
        "rows": [asdict(row) for row in evaluation.rows],
        "rows_by_task": [asdict(row) for row in evaluation.rows_by_task],
        "gains": [asdict(gain) for gain in evaluation.gains],
        "task_parameters": {
            name: dict(task.parameters) for task, name in evaluation.task_names.items()
        },
        "beside": {
            name: [asdict(row) for row in baseline.rows] for name, baseline in baselines.items()
        },
    }


def write_evaluation(
    evaluation: Evaluation,
    settings: Settings,
    baselines: Mapping[str, Evaluation],
    json_path: Path,
    csv_path: Path,
) -> dict[str, Any]:
    """Write both files, each atomically, and return the content of the JSON file.

    Raises:
        RunDirError: a file cannot be written.
    """
    results = evaluation_to_dict(evaluation, settings, baselines)
    try:
        write_atomic(json_path, json.dumps(results, indent=2) + "\n")
        write_atomic(csv_path, _csv_table({settings.run.name: evaluation, **baselines}))
    except OSError as error:
        path = error.filename2 or error.filename or json_path
        raise RunDirError(f"cannot write {path}: {error.strerror}") from None
    return results


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read and validate ``evaluation.json``.

    Raises:
        RunDirError: the file is damaged.
    """
    try:
        return _parse(read_text(path, max_bytes=_MAX_BYTES))
    except (UnreadableFile, ValueError) as error:
        raise RunDirError(
            f"{path} does not hold an evaluation ({error}); do it again: maml-ray evaluate "
            f"{quote_location(path.parent)}"
        ) from None


def read_episodes(json_path: Path, csv_path: Path) -> Evaluation:
    """Read the run's own evaluation from both files; it has no replays.

    Raises:
        RunDirError: a file is damaged or missing, or they are not of one evaluation.
    """
    results = read_evaluation(json_path)
    try:
        text = read_text(csv_path, max_bytes=_MAX_BYTES)
        measurements = _parse_measurements(text)
        _check_sizes(measurements, results)
    except (UnreadableFile, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise RunDirError(
            f"{csv_path} does not hold the episodes of an evaluation ({error}); do it again: "
            f"maml-ray evaluate {quote_location(csv_path.parent)}"
        ) from None
    return Evaluation(
        tasks=results["tasks"],
        episodes=results["episodes"],
        seed=results["seed"],
        measurements=measurements,
        replays=(),
        adaptation_episodes=results["adaptation_episodes"],
    )


def _parse_measurements(text: str) -> tuple[Measurement, ...]:
    """Return the measurements of the first policy in a table, which is the run's own."""
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    own = itertools.takewhile(lambda row: row["policy"] == rows[0]["policy"], rows)
    measurements = []
    for _, group in itertools.groupby(own, lambda row: [row[key] for key in _MEASUREMENT_KEYS]):
        episodes = list(group)
        first = episodes[0]
        speeds = tuple(float(row["speed"]) for row in episodes if row["speed"])
        measurements.append(
            Measurement(
                task=Task(first["task"], tuple(json.loads(first["parameters"]).items())),
                adaptation=int(first["adaptation"]),
                steps=int(first["steps"]),
                actions=_parse_actions(first["actions"]),
                returns=tuple(float(row["return"]) for row in episodes),
                speeds=speeds or None,
                infos={
                    key.removeprefix(_INFO): tuple(
                        float(row[key]) if row[key] else None for row in episodes
                    )
                    for key in first
                    if key and key.startswith(_INFO)
                },
            )
        )
    if not measurements:
        raise ValueError("it has no episodes")
    return tuple(measurements)


def _check_sizes(measurements: Sequence[Measurement], results: Mapping[str, Any]) -> None:
    tasks = {measurement.adaptation for measurement in measurements}
    episodes = {len(measurement.returns) for measurement in measurements}
    if len(tasks) != results["tasks"] or episodes != {results["episodes"]}:
        raise ValueError("it is not of the same evaluation as evaluation.json")


def _parse_actions(text: str) -> ActionMode:
    if text == "stochastic":
        return "stochastic"
    if text == "mean":
        return "mean"
    raise ValueError(f"actions are {text!r:.20}")


def _csv_table(evaluations: Mapping[str, Evaluation]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    infos = tuple(
        dict.fromkeys(
            name
            for evaluation in evaluations.values()
            for measurement in evaluation.measurements
            for name in measurement.infos
        )
    )
    writer.writerow((*COLUMNS, "speed", *(f"{_INFO}{name}" for name in infos)))
    for name, evaluation in evaluations.items():
        writer.writerows(_csv_rows(name, evaluation, infos))
    return text.getvalue()


def _csv_rows(name: str, evaluation: Evaluation, infos: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for measurement in evaluation.measurements:
        parameters = json.dumps(dict(measurement.task.parameters))
        speeds = measurement.speeds or ("",) * len(measurement.returns)
        missing = (None,) * len(measurement.returns)
        means = [measurement.infos.get(info, missing) for info in infos]
        for episode, (value, speed) in enumerate(zip(measurement.returns, speeds, strict=True)):
            yield (
                name,
                measurement.task.name,
                parameters,
                measurement.adaptation,
                measurement.steps,
                measurement.actions,
                episode,
                value,
                speed,
                *(each[episode] for each in means),
            )


def _check_magnitude(value: float) -> float:
    if abs(value) > _MAX_MAGNITUDE and not math.isnan(value):
        raise ValueError(f"should be less than {_MAX_MAGNITUDE:g}")
    return value


_Number = Annotated[float, AfterValidator(_check_magnitude)]
"""Small enough to be plotted, or NaN, from a policy that made the simulation diverge."""
_Count = Annotated[int, Field(ge=0, le=10**15)]


class _Model(BaseModel):
    # Extra keys are accepted: a later version may write more.
    model_config = ConfigDict(strict=True, extra="allow")


class _Row(_Model):
    task: str | None
    steps: _Count
    actions: Literal["stochastic", "mean"]
    mean: _Number
    low: _Number | None
    high: _Number | None
    speed: _Number | None
    episodes: _Count
    infos: dict[str, _Number | None] = {}


class _TaskRow(_Row):
    task: str


class _Gain(_Model):
    steps: _Count
    actions: Literal["stochastic", "mean"]
    mean: _Number
    low: _Number | None
    high: _Number | None


class _Results(_Model):
    tasks: _Count
    episodes: _Count
    adaptation_episodes: _Count | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    rows: Annotated[list[_Row], Field(min_length=1)]
    rows_by_task: list[_TaskRow]
    gains: list[_Gain] = []
    task_parameters: dict[str, dict[str, bool | int | _Number | str]] = {}
    beside: dict[str, list[_Row]]


def _parse(text: str) -> dict[str, Any]:
    """Parse the content of ``evaluation.json``.

    Raises:
        ValueError: it is invalid; the message names the key.
    """
    try:
        return _Results.model_validate_json(text).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{key:.80}: {first['msg']:.200}".lstrip(": ")) from None
