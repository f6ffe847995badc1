"""Describe mistakes in settings and requests in one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence

from pydantic import ValidationError

from maml_ray.common.errors import UserError
from maml_ray.common.json_data import format_key
from maml_ray.config.right_form import right_form

_KINDS = {
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "bool_type": "bool",
    "string_type": "str",
    "tuple_type": "list",
    "list_type": "list",
    "model_type": "mapping",
    "dict_type": "mapping",
}
"""Pydantic's errors about types, and the kind of value that is wanted instead."""


class SettingsError(UserError, ValueError):
    """A setting is invalid; the message names its key, its value and what is allowed."""


def did_you_mean(
    name: str,
    known: Iterable[str],
    dotted_keys: Iterable[str] = (),
    *,
    section: Sequence[str] = (),
) -> str:
    """Return ``"; did you mean '...'?"``, or an empty string if nothing is similar.

    Args:
        name: unknown.
        known: names, of which the most similar is suggested.
        dotted_keys: suggested instead where they end in ``name``, as ``outer.epochs`` in epochs.
        section: keys above ``known``, which are suggested with them.
    """
    # As a file path, an environment variable or a command would be written.
    dotted = re.sub(r"__|[/:]", ".", name).strip(".-").lower()
    same = [key for key in dotted_keys if f".{key}".endswith(f".{dotted}")]
    similar = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    matches = same or [".".join((*section, match)) for match in similar]
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def describe_validation_error(
    error: ValidationError,
    *,
    prefix: Sequence[str] = (),
    null_allowed: Callable[[tuple[str, ...]], bool] = lambda location: False,
    allowed_keys: Callable[[tuple[str, ...]], Sequence[str]] = lambda location: (),
    dotted_keys: Sequence[str] = (),
    noun: str = "a setting",
) -> str:
    """Return the first problem of a validation error as a sentence, and the number of others.

    Args:
        error: raised by pydantic.
        prefix: keys above the data that were validated.
        null_allowed: returns whether null is a value at a location.
        allowed_keys: returns the keys allowed at a location, for a suggestion.
        dotted_keys: all keys, of which those with the name of an unknown one are suggested.
        noun: what a key is called, with its article.
    """
    first, *others = error.errors(include_url=False)
    location = (*prefix, *map(str, first["loc"]))
    key = format_key(location)
    if first["type"] == "extra_forbidden":
        *section, name = location
        known = allowed_keys(tuple(section))
        hint = did_you_mean(name, known, dotted_keys, section=section)
        sentence = f"{key} is not {noun}{hint or '; known keys: ' + ', '.join(known)}"
    elif first["type"] == "missing":
        sentence = f"{key} is missing"
    elif isinstance(reason := first.get("ctx", {}).get("error"), UserError):
        sentence = str(reason)
    else:
        kind, value = _KINDS.get(first["type"]), first["input"]
        if kind is not None:
            form = right_form(kind, value, key, null_allowed=null_allowed(location))
            message = f"write {form}"
        else:
            message = first["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
        if first["type"] == "literal_error":
            message += _similar_choice(value, message)
        sentence = f"{key} = {value!r:.80} is not allowed: {message}"
    more = len({problem["loc"] for problem in others} - {first["loc"]})
    return f"{sentence} (and {more} more)" if more else sentence


def _similar_choice(value: object, message: str) -> str:
    return did_you_mean(str(value), re.findall("'([^']*)'", message))
