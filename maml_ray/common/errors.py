"""Exceptions that are reported as one sentence, and their exit codes."""

from __future__ import annotations

import warnings


class UserError(Exception):
    """A mistake that the user can fix: reported in one sentence without a traceback; exit code 2.

    Characters that would break the line or move the terminal's cursor, as in the name of a file,
    are escaped.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(escape_unprintable(sentence))


class ResourceError(UserError):
    """The cluster does not answer or lacks resources that the run needs: exit code 4."""

    exit_code = 4


class RunDirError(UserError):
    """A run directory is missing, in use, or without the files that are needed."""


class RunWarning(UserWarning):
    """A part of a run is damaged and was passed over. The command line prints it as one line."""


def warn_of_damage(sentence: str) -> None:
    """Warn that a part of a run is damaged and was passed over."""
    warnings.warn(escape_unprintable(sentence), RunWarning, stacklevel=2)


class TrainingFailed(Exception):
    """Training cannot continue; its checkpoints are kept.

    Attributes:
        run: the run directory, if known, to resume from once the cause is fixed.
        module: the user's own in which the run's tasks are, if any, to be named at the resume.
    """

    exit_code = 1
    run: str | None = None
    module: str | None = None


class UserCodeFailed(TrainingFailed):
    """The user's environment or task family has raised an error, and would again: exit code 2."""

    exit_code = 2


class ClusterLost(TrainingFailed):
    """A process that Ray cannot do without has died; what the run has saved is kept."""


class Interrupted(Exception):
    """A signal has stopped the run in good order.

    Args:
        signal_number: of the signal.
        remark: what went wrong while stopping.

    Attributes:
        run: the run directory, if known, to resume from.
        module: the user's own in which the run's tasks are, if any, to be named at the resume.
    """

    run: str | None = None
    module: str | None = None

    def __init__(self, signal_number: int, remark: str = "") -> None:
        super().__init__(f"stopped by signal {signal_number}" + (f"; {remark}" if remark else ""))
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class Superseded(Exception):
    """A newer attempt at the same run has started: this one has stopped and may not write.

    It has its own exit code because there is nothing to fix and nothing to resume.
    """

    exit_code = 3

    def __init__(self, sentence: str) -> None:
        super().__init__(escape_unprintable(sentence))


def escape_unprintable(text: str) -> str:
    """Return ``text`` on one line, with each unprintable character written as an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def error_reason(error: Exception) -> str:
    """Return what went wrong in a few words, to be put into a sentence."""
    return (
        getattr(error, "strerror", None)
        or " ".join(str(error).split())[:300]
        or type(error).__name__
    )
