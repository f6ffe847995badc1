"""What is wrong with a person's input, in one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

from pydantic import ValidationError

from maml_ray.common.json_data import format_key


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"; did you mean '...'?"`` where one of ``known`` looks like ``name``, else nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def describe_validation_error(
    error: ValidationError,
    *,
    prefix: Sequence[str] = (),
    allowed_keys: Callable[[tuple[str, ...]], Sequence[str]] = lambda location: (),
    noun: str = "a setting",
) -> str:
    """The first problem of a validation error as one sentence, and how many more there are.

    Args:
        error: what pydantic found.
        prefix: keys above the place that was validated.
        known_at: the keys that may stand at a place.
        noun: what a key is, with its article.
    """
    problems = error.errors(include_url=False)
    first = problems[0]
    location = (*prefix, *(str(part) for part in first["loc"]))
    key = format_key(location)
    if first["type"] == "extra_forbidden":
        known = allowed_keys(location[:-1])
        hint = did_you_mean(location[-1], known)
        sentence = f"{key} is not {noun}{hint}"
        if not hint:
            sentence += f"; known here: {', '.join(known)}"
    elif first["type"] == "missing":
        sentence = f"{key} is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        sentence = f"{key} = {first['input']!r:.80} is not allowed: {message}"
    more = len({tuple(problem["loc"]) for problem in problems}) - 1
    return sentence + (f" (and {more} more)" if more else "")
