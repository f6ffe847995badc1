"""Errors that are told to a person in one sentence, and the exit code that each means."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: told in one sentence, without a traceback; exit code 2.

    What would break the line or move the terminal's cursor, in a name that is quoted, is written
    as an escape.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        super().__init__(escape_unprintable(sentence))


class ResourceError(UserError):
    """The cluster is not there, or lacks what the run asks for: exit code 4."""

    exit_code = 4


class RunDirError(UserError):
    """A run folder is missing, taken, or does not hold what is asked of it."""


class TrainingFailed(Exception):
    """Training could not go on; what was checkpointed is kept.

    ``run`` is the run folder, where one is known: to go on with, once the cause is mended.
    """

    exit_code = 1
    run: str | None = None


class Interrupted(Exception):
    """A signal asked the run to stop; it has stopped in good order.

    ``run`` is the run folder, where one is known: to go on with. ``remark`` says what did not go
    as it should on the way out.
    """

    run: str | None = None

    def __init__(self, signal_number: int, remark: str = "") -> None:
        super().__init__(f"stopped by signal {signal_number}" + (f"; {remark}" if remark else ""))
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class Superseded(Exception):
    """A newer attempt at the same run has begun: this one has stopped, and may write no more.

    Nothing is to be done, and the run is not to be gone on with from here: hence an exit code of
    its own.
    """

    exit_code = 3

    def __init__(self, sentence: str) -> None:
        super().__init__(escape_unprintable(sentence))


def escape_unprintable(text: str) -> str:
    """``text`` with every character that does not print written as an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def error_reason(error: Exception) -> str:
    """What went wrong, in a few words for a sentence."""
    return (
        getattr(error, "strerror", None)
        or " ".join(str(error).split())[:300]
        or type(error).__name__
    )
