"""Collect what a check of a task distribution finds, in sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from maml_ray.common.errors import UserError
from maml_ray.envs.user_errors import UserCodeError, user_code


@dataclass(frozen=True)
class TaskCheck:
    """What :func:`maml_ray.check_tasks` found.

    Attributes:
        name: name of the task distribution.
        passed: what was checked and is as training needs it.
        notes: what works, but may not be meant.
        problems: what training would fail at or get wrong, with the remedy.
    """

    name: str
    passed: tuple[str, ...]
    notes: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __repr__(self) -> str:
        lines = [f"tasks of {self.name}: {'no problems' if self.ok else 'cannot be trained on'}"]
        for label, sentences in (
            ("problem", self.problems),
            ("note", self.notes),
            ("ok", self.passed),
        ):
            lines += [f"  {label + ':':9}{sentence}" for sentence in sentences]
        return "\n".join(lines)


class CheckStopped(Exception):
    """A problem has been recorded that makes the checks after it fail as well."""


class Findings:
    """Collects the sentences of a check.

    Attributes:
        passed, notes, problems: as in :class:`TaskCheck`.
    """

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.notes: list[str] = []
        self.problems: list[str] = []

    def expect(self, holds: bool, problem: str) -> None:
        """Record ``problem`` unless the condition holds."""
        if not holds:
            self.problems.append(problem)

    def require(self, holds: bool, problem: str) -> None:
        """Record ``problem`` and raise :class:`CheckStopped` unless the condition holds."""
        self.expect(holds, problem)
        if not holds:
            raise CheckStopped

    def call(self, what: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the user's code.

        Raises:
            CheckStopped: it raises an error, which has been recorded.
        """
        try:
            with user_code(what, function):
                return function(*args, **kwargs)
        except UserCodeError as error:
            self.problems.append(str(error))
        except UserError as error:
            self.problems.append(f"{what}: {error}")
        raise CheckStopped

    def summary(self, name: str) -> TaskCheck:
        """Return what was found of the distribution ``name``."""
        return TaskCheck(name, tuple(self.passed), tuple(self.notes), tuple(self.problems))
