"""Evaluating a run while it trains, with a source of versions in place of a cluster."""

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
    """A source that has one version after another, and notes what it is asked for."""

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


def judge(source: Versions, **options: object) -> list[EvaluatedVersion]:
    judged: list[EvaluatedVersion] = []
    count = follow(source, SIZES, on_evaluated=judged.append, **options)  # type: ignore[arg-type]
    assert count == len(judged)
    return judged


def test_each_version_is_judged_as_evaluate_judges_it_alone() -> None:
    versions = [version(3), version(8, 0.1)]
    source = Versions(versions)
    judged = judge(source, every=5)
    assert source.asked == [(-1, 5), (3, 5), (8, 5)]
    assert [one.version for one in judged] == [3, 8]
    for one, found in zip(judged, versions, strict=True):
        alone = evaluate(found.agent, tasks=2, episodes=3, steps=2, seed=7)
        assert one.evaluation.rows == alone.rows
        assert one.before == alone.row(0, "stochastic")
        assert one.after == alone.row(2, "stochastic")
    assert judged[0].before != judged[1].before


def test_a_version_that_cannot_be_judged_is_told_and_the_next_one_is() -> None:
    problems: list[tuple[int, str]] = []
    source = Versions([version(1, float("nan")), version(2)])
    judged = judge(source, on_error=lambda number, told: problems.append((number, told)))
    assert [one.version for one in judged] == [2]
    ((number, told),) = problems
    assert number == 1
    assert "not finite" in told


def test_tasks_that_are_not_here_end_it_at_once() -> None:
    found = version(1)
    named = found.agent.settings.task.model_copy(update={"name": "not_installed_here:Tasks"})
    elsewhere = found.agent.settings.model_copy(update={"task": named})
    source = Versions([replace(found, agent=replace(found.agent, settings=elsewhere)), version(2)])
    with pytest.raises(SettingsError, match="not_installed_here"):
        judge(source)


def test_a_request_to_stop_ends_it_between_two_tasks() -> None:
    asked = iter([False, True])

    def stop() -> None:
        if next(asked):
            raise Interrupted(2)

    judged: list[EvaluatedVersion] = []
    with pytest.raises(Interrupted):
        follow(Versions([version(1)]), SIZES, check_stop=stop, on_evaluated=judged.append)
    assert not judged


def test_an_evaluation_that_would_never_end_is_refused() -> None:
    huge = EvaluationConfig(tasks=10**7, episodes=10**6)
    with pytest.raises(SettingsError, match="--tasks"):
        follow(Versions([version(1)]), huge, on_evaluated=lambda judged: None)


def test_rows_go_to_json_lines_and_to_tensorboard(tmp_path: Path) -> None:
    judged = judge(Versions([version(3), version(8, 0.1)]))
    log = FollowLog(tmp_path / "followed")
    for one in judged:
        log.add(one)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "followed/followed.jsonl").open()]
    assert [row["version"] for row in rows] == [3, 8]
    for row, one in zip(rows, judged, strict=True):
        assert (row["tasks"], row["episodes"], row["seed"]) == (2, 3, 7)
        assert [found["mean"] for found in row["rows"]] == [r.mean for r in one.evaluation.rows]
    events = EventAccumulator(str(tmp_path / "followed/tensorboard")).Reload()
    points = events.Scalars("evaluation/after_2_steps_mean_return")
    assert [point.step for point in points] == [3, 8]
    expected = [one.evaluation.row(2, "mean").mean for one in judged]
    assert [point.value for point in points] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(RunDirError, match="name another directory"):
        FollowLog(tmp_path / "followed")


def test_a_line_tells_the_version_its_returns_and_how_long_it_took() -> None:
    (judged,) = judge(Versions([version(12)]))
    told = replace(judged, took_s=1.25).format_line()
    assert f"before {judged.before.mean:7.1f} after {judged.after.mean:7.1f}" in told
    assert told.startswith("version    12")
    assert told.endswith("took 1.2 s")
