"""What a job has to install: the packages that this one stands on, in the versions of here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib import metadata

from maml_ray.common.errors import UserError

_PACKAGE = "maml-ray"
_LEFT_OUT = frozenset({"ray", "pip", "setuptools"})
"""A cluster has its own Ray, which a job must not change, and its own tools."""
_EXTRAS = ("s3",)
"""Extras whose packages go along, where they are installed here."""


def pinned_requirements() -> list[str]:
    """``name==version`` of all that this package needs, as installed here, without Ray.

    A build's mark (``2.13.0+cpu``) is left out: the cluster's machines take the build of theirs.

    Raises:
        UserError: this package is not installed here, so nothing says what it needs.
    """
    try:
        names = closure(_PACKAGE, _EXTRAS, metadata.distribution)
    except metadata.PackageNotFoundError:
        raise UserError(
            f"{_PACKAGE} is not installed here, so its requirements are not known: "
            "pip install it first, or submit with --no-install to nodes that have them"
        ) from None
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in sorted(names)]


def closure(
    package: str,
    extras: Iterable[str],
    find: Callable[[str], metadata.Distribution],
) -> set[str]:
    """Names of all that ``package`` and its ``extras`` need, and what that needs in turn.

    Args:
        package: to begin with.
        extras: of it.
        find: tells an installed distribution.

    Raises:
        PackageNotFoundError: ``package`` itself is not installed; others are passed over.
    """
    seen: set[tuple[str, str]] = set()
    names: set[str] = set()
    waiting = [(requirement, "") for requirement in find(package).requires or ()]
    waiting += [(text, extra) for text in find(package).requires or () for extra in extras]
    while waiting:
        text, extra = waiting.pop()
        needed = _needed(text, extra)
        if needed is None or needed[0] in _LEFT_OUT:
            continue
        name, wanted = needed
        try:
            found = find(name)
        except metadata.PackageNotFoundError:
            continue  # of another platform, or an extra that is not installed
        names.add(name)
        for each in ("", *wanted):
            if (name, each) not in seen:
                seen.add((name, each))
                waiting += [(requirement, each) for requirement in found.requires or ()]
    return names


def _needed(text: str, extra: str) -> tuple[str, tuple[str, ...]] | None:
    """Name and extras of a requirement, if it holds here with ``extra`` asked for."""
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return None
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    return name, tuple(sorted(requirement.extras))
