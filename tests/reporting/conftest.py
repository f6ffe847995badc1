"""Records of a made-up run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from maml_ray.config.loading import dump_settings, load_settings
from maml_ray.learning.state import UpdateMetrics
from maml_ray.persistence.records import FaultCounts, IterationRecord, IterationTimings

MakeRun = Callable[..., Path]


class MakeRecord(Protocol):
    def __call__(self, iteration: int, **changes: Any) -> IterationRecord: ...


def made_up_record(
    iteration: int, *, iterations: int = 20, wall_s: float = 2.0, **changes: Any
) -> IterationRecord:
    """A record with metrics that look like a run's."""
    metrics: dict[str, Any] = {
        "version": iteration + 1,
        "return_before": 10.0 * iteration,
        "return_after": 12.0 * iteration,
        "speed_before": None,
        "speed_after": None,
        "loss": -0.01,
        "gradient_norm": 0.5,
        "gradient_snr": None if iteration % 2 else 3.0,
        "order_cosine": None if iteration % 2 else 0.75,
        "inner_kl": 0.01,
        "query_kl": 0.02,
        "clip_fraction": 0.1,
        "collector_ratio_error": 1e-6,
        "entropy": 8.0,
        "gradient_steps": 20,
        "learning_rate": 1e-3,
        "env_steps": 4000,
        "learn_s": 0.25 * wall_s,
    }
    return IterationRecord(
        iteration=iteration,
        iterations=iterations,
        update=UpdateMetrics(**{**metrics, **changes}),
        timings=IterationTimings(wall_s, 0.5 * wall_s, 0.125 * wall_s, 0.25 * wall_s),
        total_env_steps=4000 * (iteration + 1),
        elapsed_s=wall_s * (iteration + 1),
        faults=FaultCounts(2, 10, 0, 0, 10, 0, 0, 0, 0),
    )


@pytest.fixture
def record() -> MakeRecord:
    return made_up_record


@pytest.fixture
def make_run(tmp_path: Path, record: MakeRecord) -> MakeRun:
    """A run folder of ten iterations, whose return after adaptation is ``gain`` an iteration."""

    def make(
        name: str,
        *overrides: str,
        gain: float = 1.0,
        evaluated: float | None = None,
        by_task: tuple[float, ...] = (),
        wall_s: float = 2.0,
    ) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        settings = load_settings(overrides=[f"run.name={name.split('-')[0]}", *overrides])
        (folder / "settings.yaml").write_text(dump_settings(settings))
        rows = [
            record(
                i, return_after=gain * i, return_before=-1.0, speed_after=0.5 * gain, wall_s=wall_s
            ).as_row()
            for i in range(10)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines)
        if evaluated is not None:
            results = {
                "tasks": 1,
                "episodes": 1,
                "rows": evaluation_rows(evaluated),
                "rows_by_task": [
                    {**row, "task": f"task {index}", "mean": row["mean"] + shift}
                    for index, shift in enumerate(by_task)
                    for row in evaluation_rows(evaluated)
                ],
                "beside": {},
            }
            (folder / "evaluation.json").write_text(json.dumps(results))
        return folder

    return make


def evaluation_rows(value: float) -> list[dict[str, Any]]:
    plain = {"task": None, "low": value, "high": value, "speed": 2.0 * value, "episodes": 1}
    return [
        {"steps": step, "actions": actions, "mean": value + step + extra, **plain}
        for step in (0, 1, 2)
        for actions, extra in (("stochastic", 0.0), ("mean", 500.0))
    ]
