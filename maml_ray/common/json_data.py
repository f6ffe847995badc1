"""Plain data: what JSON can hold, checked by place before anything is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 20
"""Levels of nesting; a settings file has three or four."""
_BITS = 64


class NotJsonError(ValueError):
    """Something is no plain data; the sentence names its place."""


def check_json(data: Any, place: tuple[str, ...] = ()) -> Any:
    """A copy of ``data`` in dicts, lists, text, numbers, booleans and None.

    Text is whole characters without null bytes, numbers are finite and of 64 bits at most: what
    goes into a file, a path or an array later.

    Raises:
        NotJsonError: a value is none of these; the sentence names its key.
    """
    if data is None or isinstance(data, bool):
        return data
    if isinstance(data, str):
        return _text(data, place)
    if isinstance(data, int | float):
        return _number(data, place)
    if len(place) > MAX_DEPTH:
        raise NotJsonError(
            f"{format_key(place)} is not allowed: it is nested {MAX_DEPTH} levels deep"
        )
    if isinstance(data, Mapping):
        return {_key(key, place): check_json(value, (*place, key)) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [check_json(value, (*place, str(index))) for index, value in enumerate(data)]
    raise NotJsonError(
        f"{format_key(place)} = {data!r:.60} is not allowed: it is not plain data "
        f"(a {type(data).__name__})"
    )


def format_key(place: tuple[str, ...]) -> str:
    """A place as ``section.key``, on one line and not too long."""
    parts = [part if part.isprintable() and len(part) <= 60 else f"{part!r:.60}" for part in place]
    if len(parts) > 6:
        parts = [*parts[:5], "..."]
    return ".".join(parts) or "the settings"


def _key(key: Any, place: tuple[str, ...]) -> str:
    if not isinstance(key, str):
        raise NotJsonError(
            f"the key {key!r:.60} in {format_key(place)} is not allowed: it must be text"
        )
    return _text(key, (*place, key))


def _text(text: str, place: tuple[str, ...]) -> str:
    problem = "it holds a null byte" if "\0" in text else None
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        problem = "it holds half of a character (a surrogate)"
    if problem:
        raise NotJsonError(f"{format_key(place)} = {text!r:.60} is not allowed: {problem}")
    return text


def _number(number: float, place: tuple[str, ...]) -> float:
    if isinstance(number, int):
        if number.bit_length() > _BITS:
            raise NotJsonError(
                f"{format_key(place)} is not allowed: a number of more than {_BITS} bits"
            )
    elif not math.isfinite(number):
        raise NotJsonError(
            f"{format_key(place)} = {number} is not allowed: it must be a finite number"
        )
    return number
