"""Evaluate a run while it trains, skipping versions published during an evaluation; no Ray."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from maml_ray.common.errors import RunDirError, UserError
from maml_ray.common.safe_files import RetryingFile
from maml_ray.config.settings import SettingsError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.intervals import format_interval
from maml_ray.evaluation.results import Evaluation, EvaluationRow
from maml_ray.reporting.progress_text import format_infos
from maml_ray.runs.evaluate import (
    EvaluationConfig,
    check_evaluation_size,
    evaluate_agent,
    override_inner_rate,
)

RESULTS_FILE = "followed.jsonl"


@dataclass(frozen=True)
class PolicyVersion:
    """An agent with one published version of the parameters."""

    version: int
    agent: Agent


class VersionSource(Protocol):
    """Supply policy versions of a run."""

    def next(self, newer_than: int, every: int) -> PolicyVersion | None:
        """Wait for a version after ``newer_than`` that is a multiple of ``every``.

        Returns:
            The newest such version; None once the run has ended.
        """


@dataclass(frozen=True)
class EvaluatedVersion:
    """The evaluation of one version.

    Attributes:
        version: version of the parameters.
        evaluation: results.
        took_s: duration of the evaluation in seconds.
    """

    version: int
    evaluation: Evaluation
    took_s: float

    @property
    def before(self) -> EvaluationRow:
        """Results before adaptation, with sampled actions."""
        return self.evaluation.row(0, "stochastic")

    @property
    def after(self) -> EvaluationRow:
        """Results after the last adaptation step, with sampled actions."""
        return self.evaluation.row(max(row.steps for row in self.evaluation.rows), "stochastic")

    def format_line(self) -> str:
        """Return the results as a line of text."""
        before, after = self.before, self.after
        speeds = ""
        if before.speed is not None and after.speed is not None:
            speeds = f"  m/s {before.speed:5.2f} {after.speed:5.2f}"
        speeds += format_infos(before.infos, after.infos)
        return (
            f"version {self.version:>5}  return before {before.mean:7.1f} after {after.mean:7.1f} "
            f"({format_interval(after.low, after.high)}){speeds}  took {self.took_s:.1f} s"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the results as a JSON object: a line of ``followed.jsonl``."""
        return {
            "version": self.version,
            "tasks": self.evaluation.tasks,
            "episodes": self.evaluation.episodes,
            "seed": self.evaluation.seed,
            "took_s": self.took_s,
            "rows": [asdict(row) for row in self.evaluation.rows],
        }


def follow(
    source: VersionSource,
    config: EvaluationConfig,
    *,
    every: int = 1,
    check_stop: Callable[[], None] = lambda: None,
    on_evaluated: Callable[[EvaluatedVersion], None],
    on_error: Callable[[int, str], None] = lambda version, message: None,
) -> int:
    """Evaluate versions of ``source`` until it ends, and return how many.

    All use the same tasks and seeds, so that results differ only because the policy does. Of the
    versions published during an evaluation only the newest is evaluated.

    Args:
        source: supplies the versions.
        config: how to evaluate them.
        every: evaluate only versions that are multiples of it.
        check_stop: called between tasks; may raise to stop.
        on_evaluated: receives each result.
        on_error: receives a version that cannot be evaluated and why, such as adapted parameters
            that are not finite; later versions may be better.

    Raises:
        SettingsError: the evaluation is too large, the inner rate is learned and cannot be
            replaced, or the run's tasks are not installed here.
    """
    version, count = -1, 0
    while (candidate := source.next(version, every)) is not None:
        started = time.perf_counter()
        agent, version = override_inner_rate(candidate.agent, config.inner_rate), candidate.version
        check_evaluation_size(agent, config)
        try:
            evaluation = evaluate_agent(agent, config, lambda task, tasks: check_stop())
        except SettingsError:
            raise  # it would fail for every version
        except UserError as error:
            on_error(version, str(error))
        else:
            count += 1
            on_evaluated(EvaluatedVersion(version, evaluation, time.perf_counter() - started))
    return count


class FollowLog:
    """Log evaluations to ``followed.jsonl`` and TensorBoard.

    Args:
        directory: created if needed; must not contain ``followed.jsonl``.

    Raises:
        RunDirError: it contains one, or cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        from maml_ray.reporting.tensorboard import EventWriter  # slow to import

        if os.path.lexists(directory / RESULTS_FILE):
            raise RunDirError(
                f"{directory} already contains {RESULTS_FILE}: name another directory"
            )
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._events = EventWriter(directory / "tensorboard")
        except OSError as error:
            raise RunDirError(f"cannot write to {directory}: {error.strerror}") from None
        self._lines = RetryingFile(directory / RESULTS_FILE)

    def add(self, evaluated: EvaluatedVersion) -> None:
        """Append one line, and one point to every curve, at the version."""
        self._lines.append(f"{json.dumps(evaluated.to_dict())}\n".encode())
        points: dict[str, float] = {}
        for row in evaluated.evaluation.rows:
            tag = f"evaluation/after_{row.steps}_steps_{row.actions}"
            points[f"{tag}_return"] = row.mean
            if row.speed is not None:
                points[f"{tag}_m_per_s"] = row.speed
            points |= {
                f"{tag}_{name}": mean for name, mean in row.infos.items() if mean is not None
            }
        self._events.add_scalars(points, evaluated.version)

    def close(self) -> None:
        """Write pending data and close the files."""
        self._lines.close()
        self._events.close()
