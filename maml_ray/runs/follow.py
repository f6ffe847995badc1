"""Evaluating a run while it trains: each version that there is time for. No Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from maml_ray.common.errors import RunDirError, UserError
from maml_ray.common.safe_files import PatientFile
from maml_ray.config.settings import SettingsError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.evaluate import Evaluation, EvaluationRow, evaluate
from maml_ray.runs.evaluate import EvaluationConfig, check_evaluation_size, override_inner_rate

ROWS = "followed.jsonl"


@dataclass(frozen=True)
class PolicyVersion:
    """A version of the parameters, ready for use."""

    version: int
    agent: Agent


class VersionSource(Protocol):
    """Where versions come from."""

    def next(self, newer_than: int, every: int) -> PolicyVersion | None:
        """The newest version that is newer and that ``every`` divides; None once there is no more.

        Waits for it.
        """


@dataclass(frozen=True)
class EvaluatedVersion:
    """One version, evaluated.

    Attributes:
        version: of the parameters.
        evaluation: what was found.
        took_s: seconds that it took.
    """

    version: int
    evaluation: Evaluation
    took_s: float

    @property
    def before(self) -> EvaluationRow:
        """Sampled actions, before adaptation."""
        return self.evaluation.row(0, "stochastic")

    @property
    def after(self) -> EvaluationRow:
        """Sampled actions, after the last adaptation step."""
        return self.evaluation.row(max(row.steps for row in self.evaluation.rows), "stochastic")

    def line(self) -> str:
        """The version in a line of text."""
        before, after = self.before, self.after
        speeds = ""
        if before.speed is not None and after.speed is not None:
            speeds = f"  m/s {before.speed:5.2f} {after.speed:5.2f}"
        return (
            f"version {self.version:>5}  return before {before.mean:7.1f} after {after.mean:7.1f} "
            f"({after.low:.1f} to {after.high:.1f}){speeds}  took {self.took_s:.1f} s"
        )

    def as_row(self) -> dict[str, Any]:
        """One JSON object: a line of ``followed.jsonl``."""
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
    on_problem: Callable[[int, str], None] = lambda version, told: None,
) -> int:
    """Evaluate version after version until ``source`` ends; how many there were.

    All by the same tasks and seeds, so that what differs between two versions is the policy. What
    comes while one is evaluated is passed over, but for the newest.

    Args:
        source: of the versions.
        config: how they are evaluated.
        every: only versions that it divides.
        check_stop: called between tasks; may raise to end it.
        on_judged: told of each version.
        on_problem: told of a version that cannot be judged, and why: one that adapts to what is
            not finite. The next one may be better.

    Raises:
        SettingsError: ``config`` asks for too much, or for a rate that the run has learned; or
            the run's tasks cannot be had here.
    """
    version, judged = -1, 0
    while (found := source.next(version, every)) is not None:
        agent, began = override_inner_rate(found.agent, config.inner_rate), time.perf_counter()
        check_evaluation_size(agent, config)
        version = found.version
        try:
            evaluation = evaluate(
                agent,
                tasks=config.tasks,
                episodes=config.episodes,
                steps=config.steps,
                seed=config.seed,
                on_task=lambda task, tasks: check_stop(),
            )
        except SettingsError:
            raise  # of a family that is not installed here, say: no other version would do
        except UserError as error:
            on_problem(version, str(error))
        else:
            judged += 1
            on_evaluated(EvaluatedVersion(version, evaluation, time.perf_counter() - began))
    return judged


class FollowLog:
    """Rows of what was judged, in ``followed.jsonl`` and TensorBoard.

    Args:
        folder: is made; must not hold rows yet.

    Raises:
        RunDirError: it does, or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from maml_ray.reporting.tensorboard import EventWriter  # slow to import

        if (folder / ROWS).exists():
            raise RunDirError(f"{folder} holds {ROWS} already: name another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._events = EventWriter(folder / "tensorboard")
        except OSError as error:
            raise RunDirError(f"cannot write to {folder}: {error.strerror}") from None
        self._lines = PatientFile(folder / ROWS)

    def add(self, judged: EvaluatedVersion) -> None:
        """One line, and one point of every curve, at the version."""
        self._lines.append(f"{json.dumps(judged.as_row())}\n".encode())
        points: dict[str, float] = {}
        for row in judged.evaluation.rows:
            tag = f"evaluation/after_{row.steps}_steps_{row.actions}"
            points[f"{tag}_return"] = row.mean
            if row.speed is not None:
                points[f"{tag}_m_per_s"] = row.speed
        self._events.add_scalars(points, judged.version)

    def close(self) -> None:
        """Write what waits."""
        self._lines.close()
        self._events.close()
