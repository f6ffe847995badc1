"""List the packages that a job installs: the dependencies of maml-ray in the local versions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib import metadata

from maml_ray.common.errors import UserError

_PACKAGE = "maml-ray"
_NOT_INSTALLED = frozenset({"ray", "pip", "setuptools"})
"""The cluster has its own Ray, which a job must not change, and its own tools."""
_EXTRAS = ("s3",)
"""Extras whose packages are included if they are installed here."""


def pinned_requirements() -> list[str]:
    """Return ``name==version`` of all dependencies as installed here, without Ray.

    Local version labels (``2.13.0+cpu``) are dropped: the nodes install the build for their
    hardware.

    Raises:
        UserError: maml-ray is not installed here, so that its dependencies are unknown.
    """
    try:
        names = dependency_closure(_PACKAGE, _EXTRAS, metadata.distribution)
    except metadata.PackageNotFoundError:
        raise UserError(
            f"{_PACKAGE} is not installed here, so its dependencies are unknown: "
            "pip install it first, or submit with --no-install to nodes that have them"
        ) from None
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in sorted(names)]


def dependency_closure(
    package: str,
    extras: Iterable[str],
    find: Callable[[str], metadata.Distribution],
) -> set[str]:
    """Return the names of all direct and indirect dependencies of ``package``.

    Args:
        package: name of an installed package.
        extras: of the package, to include.
        find: returns an installed distribution by name.

    Raises:
        PackageNotFoundError: ``package`` itself is not installed; missing others are skipped.
    """
    seen: set[tuple[str, str]] = set()
    names: set[str] = set()
    pending = [(requirement, "") for requirement in find(package).requires or ()]
    pending += [(text, extra) for text in find(package).requires or () for extra in extras]
    while pending:
        text, extra = pending.pop()
        parsed = _parse_if_applicable(text, extra)
        if parsed is None or parsed[0] in _NOT_INSTALLED:
            continue
        name, requested_extras = parsed
        try:
            distribution = find(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform, or of an extra that is not installed
        names.add(name)
        for each in ("", *requested_extras):
            if (name, each) not in seen:
                seen.add((name, each))
                pending += [(requirement, each) for requirement in distribution.requires or ()]
    return names


def _parse_if_applicable(text: str, extra: str) -> tuple[str, tuple[str, ...]] | None:
    """Return name and extras of a requirement if it applies here with ``extra``, or None."""
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
        return None
    name = re.sub(r"[-_.]+", "-", requirement.name).lower()
    return name, tuple(sorted(requirement.extras))
