"""Report errors of a user's environments and task families in one sentence, with file and line."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

import maml_ray
from maml_ray.common.errors import UserError

_STANDARD_LIBRARY = tuple(
    f"{Path(sysconfig.get_path(name)).resolve()}/" for name in ("stdlib", "platstdlib")
)
_INSTALLED = {"site-packages", "dist-packages"}
"""Folders of installed packages, in whichever of several environments, the system's or a home."""
_OWN = f"{Path(maml_ray.__file__).resolve().parent}/"
_MAX_LENGTH = 300

OLD_API = (
    "write reset(self, *, seed=None, options=None), which returns (observation, info), and step, "
    "which returns (observation, reward, terminated, truncated, info); an environment of the old "
    "gym can be wrapped in shimmy.GymV21CompatibilityV0"
)
"""Remedy for an environment written for gym before version 0.26."""


class UserCodeError(UserError):
    """A user's environment or task family has raised an error, or returned what it must not."""


@contextmanager
def user_code(
    what: str, function: Callable[..., Any] | None = None, *, among_ours: bool = False
) -> Iterator[None]:
    """Report errors that the block raises as those of ``what``, such as ``"make_env"``.

    Args:
        what: what the block calls.
        function: the user's function that it calls, for an error of the call itself.
        among_ours: the block has code of this package, too, whose errors are raised as they are.

    Raises:
        UserCodeError: for any error but a :class:`UserError`, which is a sentence already.
    """

    def convert(error: BaseException) -> BaseException:
        if among_ours and not _frames(error):
            return error
        return UserCodeError(f"{what} raises {describe_user_error(error, function)}")

    with converted_errors(convert):
        yield


@contextmanager
def converted_errors(convert: Callable[[BaseException], BaseException]) -> Iterator[None]:
    """Raise what ``convert`` makes of an error that the block, which runs a user's code, raises.

    A program that the user's code leaves is an error, too. Passed on as they are: a
    :class:`UserError`, which is a sentence already, and the exit of a signal's handler.

    Args:
        convert: returns the error to raise; the same to pass it on.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's class may raise anything
        converted = error if _is_signal(error) else convert(error)
        if converted is error:
            raise
        raise converted from error


class _Closable(Protocol):
    def close(self) -> Any: ...


_Env = TypeVar("_Env", bound=_Closable)


@contextmanager
def closing_env(env: _Env) -> Iterator[_Env]:
    """Close an environment, or a batch of them, after the block.

    Raises:
        UserCodeError: closing raises an error. After an error of the block that is not reported:
            an environment that has failed may be unable to close.
    """
    try:
        yield env
    except BaseException:
        with suppress(Exception):
            env.close()
        raise
    with user_code("close", env.close):
        env.close()


def _is_signal(error: BaseException) -> bool:
    """Return whether a handler of a signal, ours or Ray's, leaves the program, not the user."""
    if not isinstance(error, SystemExit):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    written = [frame.filename for frame in frames if not frame.filename.startswith("<")]
    return not written or not _is_users(written[-1])


def describe_user_error(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """Return the type and message of an error, the user's file and line, and a known remedy.

    Args:
        error: raised by the user's code.
        function: the user's function that was called; named if the call itself failed.
    """
    message = " ".join(str(error).split())[:_MAX_LENGTH]
    described = f"{type(error).__name__}: {message}" if message else type(error).__name__
    place = _place_of(error)
    if place:
        described += f" ({place})"
    elif function is not None:
        described += place_of_definition(function)
    return described + _remedy(error)


def place_of_definition(function: Callable[..., Any]) -> str:
    """Return ``" (file, line N)"`` of a function of the user's; empty if it is not the user's."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or not _is_users(code.co_filename):
        return ""
    return f" ({code.co_filename}, line {code.co_firstlineno})"


def _place_of(error: BaseException) -> str:
    """Return file and line of the innermost call in the user's code, else in an environment's."""
    if isinstance(error, SyntaxError) and error.filename:  # it has no frame of that file
        return f"{error.filename}, line {error.lineno}"
    frames = _frames(error)
    users = [frame for frame in frames if _is_users(frame.filename)]
    for frame in reversed(users or frames):
        return f"{frame.filename}, line {frame.lineno}"
    return ""


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return the calls outside this package that led to an error, outermost first.

    Without those of the standard library, whose lines tell a user nothing.
    """
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and not _is_within(frame.filename, (_OWN,))
        and (_is_installed(frame.filename) or not _is_within(frame.filename, _STANDARD_LIBRARY))
    ]


def _is_users(filename: str) -> bool:
    return not (
        _is_installed(filename)
        or _is_within(filename, (_OWN, *_STANDARD_LIBRARY))
        or filename.startswith("<frozen")
    )


def _is_installed(filename: str) -> bool:
    return not _INSTALLED.isdisjoint(Path(filename).parts)


def _is_within(filename: str, folders: tuple[str, ...]) -> bool:
    return str(Path(filename).resolve()).startswith(folders)


def _remedy(error: BaseException) -> str:
    """Return a remedy for what environments often raise; empty if none is known."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    kind, message = type(error).__name__, str(error)
    if kind in ("NameNotFound", "NamespaceNotFound", "UnregisteredEnv"):
        return (
            ": import the module that registers it in the module of your tasks, or write "
            "gymnasium.make('module:Name-v0')"
        )
    if isinstance(error, TypeError) and (
        ("reset()" in message and "keyword argument" in message)
        or "Expected env to be a `gymnasium.Env`" in message  # said by Gymnasium's wrappers
    ):
        return f": {OLD_API}"
    if kind == "NotImplementedError" and {"flatten_space", "is_np_flattenable"}.intersection(names):
        return (
            ": Gymnasium cannot flatten a part of the observations, such as text: leave it out in "
            "a gymnasium.ObservationWrapper, as MiniGrid's ImgObsWrapper does"
        )
    if "_add_info" in names:
        return ": keep the type and shape of each entry of info the same"
    if "step" in names and isinstance(error, AssertionError):
        return (
            ": a Gaussian policy's actions are not bounded; if it is because of them, wrap the "
            "environment in gymnasium.wrappers.ClipAction"
        )
    return ""
