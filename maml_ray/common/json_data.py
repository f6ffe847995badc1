"""Validate data from outside as JSON data before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 20
"""Levels of nesting; a settings file has three or four."""


class NotJsonError(ValueError):
    """A value is not JSON data; the message names its key."""


def check_json(data: Any, path: tuple[str, ...] = ()) -> Any:
    """Return a copy of ``data`` made of dicts, lists, strings, numbers, booleans and None.

    Strings have no null bytes and no surrogates, and numbers are finite and have at most 64 bits,
    since they go into files, paths and arrays.

    Args:
        data: to be checked.
        path: keys that lead to ``data``, for the message.

    Raises:
        NotJsonError: some value or key is none of these.
    """
    if data is None or isinstance(data, bool):
        return data
    key = format_key(path)
    if isinstance(data, str):
        if "\0" in data or any("\ud800" <= letter <= "\udfff" for letter in data):
            problem = "it has a null byte or half of a character (a surrogate)"
            raise NotJsonError(f"{key} = {data!r:.60} is not allowed: {problem}")
        return data
    if isinstance(data, int):
        if data.bit_length() > 64:
            raise NotJsonError(f"{key} is not allowed: a number of more than 64 bits")
        return data
    if isinstance(data, float):
        if not math.isfinite(data):
            raise NotJsonError(f"{key} = {data} is not allowed: it must be a finite number")
        return data
    if not isinstance(data, Mapping | list | tuple):
        problem = f"it is not plain data (a {type(data).__name__})"
        raise NotJsonError(f"{key} = {data!r:.60} is not allowed: {problem}")
    if len(path) > MAX_DEPTH:
        raise NotJsonError(f"{key} is not allowed: it is nested more than {MAX_DEPTH} levels deep")
    if isinstance(data, Mapping):
        return {
            _check_key(name, path): check_json(each, (*path, name)) for name, each in data.items()
        }
    return [check_json(each, (*path, str(index))) for index, each in enumerate(data)]


def format_key(path: tuple[str, ...]) -> str:
    """Return a path as ``section.key``, on one line and shortened."""
    parts = [part if part.isprintable() and len(part) <= 60 else f"{part!r:.60}" for part in path]
    return ".".join(parts if len(parts) <= 6 else [*parts[:5], "..."]) or "the settings"


def _check_key(key: Any, path: tuple[str, ...]) -> str:
    if not isinstance(key, str):
        raise NotJsonError(f"the key {key!r:.60} in {format_key(path)} must be a string")
    check_json(key, (*path, key))
    return key
