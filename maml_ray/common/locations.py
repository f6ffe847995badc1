"""Decide what a path or URL that somebody wrote means: one rule for settings, options and calls.

A path may begin with ``~`` and have variables as ``$NAME`` or ``${NAME}`` (``$$`` is a dollar
sign). Both are replaced where and when the path is used, so a job's are those of the cluster. A
path that begins with ``/`` or ``./`` may have any other form; one that looks like a mistyped URL or
a path of Windows is refused, since it would become a directory of that name.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from maml_ray.common.errors import UserError

OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "r2"})
_LOCAL = ("file", "local")
_WEB = ("http", "https")
_SCHEMES = OBJECT_STORES | {*_LOCAL, *_WEB, "memory", "hdfs", "webhdfs", "sftp", "ssh", "smb", "hf"}
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_MISTYPED_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(:[/\\]*|[/\\]{2,})(.*)", re.DOTALL)
_WINDOWS = re.compile(r"[A-Za-z]:[/\\]|\\\\")
_VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{([^}]*)\})")


class LocationError(UserError):
    """A path or URL cannot be used; the message says where it is from and what to write."""


def is_url(text: str) -> bool:
    """Return whether ``text`` is a URL and not a path."""
    return _URL.fullmatch(text) is not None


def path_problem(text: str) -> str | None:
    """Return why ``text`` is no path on any machine, as the end of a sentence; None if it is."""
    if is_url(text):
        return "write the path of a directory or file, not a URL"
    return _path_problem(text, urls=False)


def location_problem(text: str) -> str | None:
    """Return why ``text`` is neither a path nor a URL on any machine; None if it is one."""
    if url := _URL.fullmatch(text):
        return _url_problem(*url.groups())
    return _path_problem(text, urls=True)


def expand_path(text: str, name: str) -> Path:
    """Return the path on this machine that ``text`` means.

    Args:
        text: as a person wrote it.
        name: of the setting, option or argument, for the message.

    Raises:
        LocationError: it has another form, or a variable or user that this machine does not have.
    """
    path = _expand(text, name)
    _check(path_problem(path) or _encoding_problem(path), text, name)
    return _as_path(path)


def expand_location(text: str, name: str) -> str:
    """Return the URL, or the path on this machine, that ``text`` means.

    Raises:
        LocationError: as for :func:`expand_path`.
    """
    location = text if is_url(text) else _expand(text, name)
    _check(location_problem(location) or _encoding_problem(location), text, name)
    return location


def parse_path(value: str | os.PathLike[str], name: str) -> Path:
    """Return the path that an argument of a call or command means.

    Of a path object the variables are not replaced: a program has made it, and ``$`` is a letter.

    Raises:
        LocationError: as for :func:`expand_path`.
    """
    return expand_path(_text(value), name)


def parse_location(value: str | os.PathLike[str], name: str) -> Path | str:
    """Return the path, or else the URL, that an argument means; otherwise as :func:`parse_path`."""
    location = expand_location(_text(value), name)
    return location if is_url(location) else _as_path(location)


def escape_path(path: Path) -> str:
    """Return the text that :func:`expand_path` reads as ``path``, which is absolute."""
    return str(path).replace("$", "$$")


def _text(value: str | os.PathLike[str]) -> str:
    text = os.fspath(value)
    return text if isinstance(value, str) else text.replace("$", "$$")


def _as_path(text: str) -> Path:
    """Return a path that means the same if it is parsed again.

    A path object has no ``./`` in front; if it would mean something else without, it is absolute.
    """
    path = Path(text)
    bare = str(path)
    is_special = bare.startswith("~") or _path_problem(bare, urls=False) is not None
    return path.absolute() if is_special else path


def _path_problem(text: str, *, urls: bool) -> str | None:
    """Return why ``text`` is no path; ``urls`` says whether it may have been meant as a URL."""
    if not text:
        return "write a path, not nothing"
    if os.name != "nt" and _WINDOWS.match(text):
        return "it is a path of Windows: write one of this system, such as /mnt/runs or ~/runs"
    if mistyped := _MISTYPED_URL.fullmatch(text):
        scheme, separator, rest = mistyped.groups()
        if scheme.lower() in _SCHEMES or re.match(r":[/\\]", separator):
            slashes = ":///" if scheme.lower() in _LOCAL else "://"
            url = f"{scheme.lower()}{slashes}{rest}".replace("\\", "/")
            return f"write {url if urls else 'a path'}, or ./{text} for a directory of that name"
    return None


def _url_problem(scheme: str, rest: str) -> str | None:
    if scheme != scheme.lower():
        return f"write {scheme.lower()}://{rest}"
    if scheme in _WEB:
        return "nothing is stored by HTTP: write a directory, or a URL such as s3://bucket/runs"
    if "$" in rest:
        return "variables are replaced in paths, not in URLs: write the value"
    if scheme in _LOCAL and not rest.startswith("/"):
        right = rest if rest.startswith("~") else f"{scheme}:///{rest or 'mnt/runs'}"
        return f"write {right}"
    if scheme in OBJECT_STORES and (not rest or rest.startswith("/")):
        return f"write {scheme}://{rest.strip('/') or 'bucket/runs'}, with the name of a bucket"
    return None


def _expand(text: str, name: str) -> str:
    first, slash, others = text.partition("/")
    if first.startswith("~"):
        home = os.path.expanduser(first)
        if home == first:
            _check(f"there is no user {first[1:]!r} on this machine", text, name)
        return f"{home}{slash}{_replace_variables(others, text, name)}"
    return _replace_variables(text, text, name)


def _replace_variables(part: str, text: str, name: str) -> str:
    def value(match: re.Match[str]) -> str:
        dollar, plain, braced = match.groups()
        if dollar:
            return "$"
        variable = plain or braced or ""
        if not os.environ.get(variable):
            _check(
                f"there is no environment variable {variable!r} on this machine (for a dollar "
                "sign, write $$)",
                text,
                name,
            )
        return os.environ[variable]

    return _VARIABLE.sub(value, part)


def _encoding_problem(path: str) -> str | None:
    """Return why this process cannot name a file so: its locale may have ASCII only.

    On the command line such letters arrive as surrogates, with which Ray does not start.
    """
    if sys.getfilesystemencoding() == "ascii" and not path.isascii():
        return "the locale has no such letters in names of files: set LC_ALL=C.UTF-8"
    return None


def _check(problem: str | None, text: str, name: str) -> None:
    if problem is not None:
        raise LocationError(f"{name} = {text!r:.80} is not allowed: {problem}")
