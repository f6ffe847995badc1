"""Write commands that a person can copy into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

from maml_ray.common.locations import is_url, path_problem


def quote_location(location: str | Path) -> str:
    """Return a path or URL as an argument of ``maml-ray``, quoted for a shell.

    The command reads it as :func:`maml_ray.common.locations.parse_location` does: a dollar sign is
    doubled, and a relative path that looks like something else begins with ``./``.
    """
    text = str(location)
    if not is_url(text):
        if text.startswith(("-", "~")) or path_problem(text) is not None:
            text = f"./{text}"
        text = text.replace("$", "$$")
    return shlex.quote(text)


def resume_hint(run: str | None, module: str | None = None) -> str:
    """Return a second line that says how to go on with ``run``; nothing if it is None.

    Args:
        run: the run directory.
        module: the user's own, in which the run's tasks are.
    """
    if run is None:
        return ""
    command = f"maml-ray train --resume {quote_location(run)}{import_option(module)}"
    return f"\nmaml-ray: finished iterations are in {run}; resume with: {command}"


def import_option(module: str | None) -> str:
    """Return the option that lets the record of a run name ``module``; empty if it is None."""
    return "" if module is None else f" --import {shlex.quote(module)}"
