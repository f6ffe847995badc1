"""Test evaluating a run while it trains, with a fake source of versions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maml_ray.common.errors import Interrupted, RunDirError
from maml_ray.config.settings import SettingsError
from maml_ray.evaluation.evaluate import evaluate
from maml_ray.runs.evaluate import EvaluationConfig
from maml_ray.runs.follow import EvaluatedVersion, FollowLog, PolicyVersion, follow
from tests.small_runs import agent_of, settings

SIZES = EvaluationConfig(tasks=2, episodes=3, steps=2, seed=7)


class Versions:
    """Supply versions one by one and record the requests."""

    def __init__(self, versions: Sequence[PolicyVersion]) -> None:
        self._coming = list(versions)
        self.asked: list[tuple[int, int]] = []

    def next(self, newer_than: int, every: int) -> PolicyVersion | None:
        self.asked.append((newer_than, every))
        return self._coming.pop(0) if self._coming else None


def version(number: int, shift: float = 0.0) -> PolicyVersion:
    agent = agent_of(settings())
    moved = {name: value + np.float32(shift) for name, value in agent.parameters.items()}
    return PolicyVersion(number, replace(agent, parameters=moved))


def evaluate_all(source: Versions, **options: object) -> list[EvaluatedVersion]:
    evaluated: list[EvaluatedVersion] = []
    count = follow(source, SIZES, on_evaluated=evaluated.append, **options)  # type: ignore[arg-type]
    assert count == len(evaluated)
    return evaluated


def test_each_version_is_evaluated_as_by_evaluate() -> None:
    versions = [version(3), version(8, 0.1)]
    source = Versions(versions)
    evaluated = evaluate_all(source, every=5)
    assert source.asked == [(-1, 5), (3, 5), (8, 5)]
    assert [one.version for one in evaluated] == [3, 8]
    for one, found in zip(evaluated, versions, strict=True):
        alone = evaluate(found.agent, tasks=2, episodes=3, steps=2, seed=7)
        assert one.evaluation.rows == alone.rows
        assert one.before == alone.row(0, "stochastic")
        assert one.after == alone.row(2, "stochastic")
    assert evaluated[0].before != evaluated[1].before


def test_a_version_that_cannot_be_evaluated_is_reported_and_skipped() -> None:
    problems: list[tuple[int, str]] = []
    source = Versions([version(1, float("nan")), version(2)])
    evaluated = evaluate_all(
        source, on_error=lambda number, message: problems.append((number, message))
    )
    assert [one.version for one in evaluated] == [2]
    ((number, message),) = problems
    assert number == 1
    assert "not finite" in message


def test_tasks_that_are_not_installed_end_it_at_once() -> None:
    found = version(1)
    named = found.agent.settings.task.model_copy(update={"name": "not_installed_here:Tasks"})
    elsewhere = found.agent.settings.model_copy(update={"task": named})
    source = Versions([replace(found, agent=replace(found.agent, settings=elsewhere)), version(2)])
    with pytest.raises(SettingsError, match="not_installed_here"):
        evaluate_all(source)


def test_a_request_to_stop_ends_it_between_two_tasks() -> None:
    asked = iter([False, True])

    def stop() -> None:
        if next(asked):
            raise Interrupted(2)

    evaluated: list[EvaluatedVersion] = []
    with pytest.raises(Interrupted):
        follow(Versions([version(1)]), SIZES, check_stop=stop, on_evaluated=evaluated.append)
    assert not evaluated


def test_a_huge_evaluation_is_rejected() -> None:
    huge = EvaluationConfig(tasks=10**7, episodes=10**6)
    with pytest.raises(SettingsError, match="--tasks"):
        follow(Versions([version(1)]), huge, on_evaluated=lambda evaluated: None)


def test_rows_go_to_json_lines_and_to_tensorboard(tmp_path: Path) -> None:
    evaluated = evaluate_all(Versions([version(3), version(8, 0.1)]))
    log = FollowLog(tmp_path / "followed")
    for one in evaluated:
        log.add(one)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "followed/followed.jsonl").open()]
    assert [row["version"] for row in rows] == [3, 8]
    for row, one in zip(rows, evaluated, strict=True):
        assert (row["tasks"], row["episodes"], row["seed"]) == (2, 3, 7)
        assert [found["mean"] for found in row["rows"]] == [r.mean for r in one.evaluation.rows]
    events = EventAccumulator(str(tmp_path / "followed/tensorboard")).Reload()
    points = events.Scalars("evaluation/after_2_steps_mean_return")
    assert [point.step for point in points] == [3, 8]
    expected = [one.evaluation.row(2, "mean").mean for one in evaluated]
    assert [point.value for point in points] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(RunDirError, match="name another directory"):
        FollowLog(tmp_path / "followed")


def test_the_line_contains_version_returns_and_duration() -> None:
    (evaluated,) = evaluate_all(Versions([version(12)]))
    message = replace(evaluated, took_s=1.25).format_line()
    assert f"before {evaluated.before.mean:7.1f} after {evaluated.after.mean:7.1f}" in message
    assert message.startswith("version    12")
    assert message.endswith("took 1.2 s")
