"""Accept settings as earlier versions recorded them: former keys, and keys that are missing."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from maml_ray.common.locations import location_problem, path_problem
from maml_ray.config.error_messages import SettingsError

RENAMED_KEYS: Mapping[str, str] = {
    "meta_batch.overlap": "meta_batch.async_collection",
    "policy.normalise_observations": "policy.normalize_observations",
    "advantages.normalise": "advantages.normalize",
    "inner.learn_rates": "inner.learn_inner_rates",
    "outer.backtracks": "outer.max_rollbacks",
    "outer.sampling_coefficient": "outer.e_maml_coefficient",
}
"""Former key -> present key, in the same section."""
FORMER_BEHAVIOR: Mapping[str, Any] = {"policy.action_bounds": "none"}
"""Key -> value that does what versions before this setting did, where the default does not."""


_LITERAL_PATHS = {
    "run.directory": path_problem,
    "run.storage": location_problem,
    "faults.fallback_directory": path_problem,
}


class RenamedKeyWarning(FutureWarning):
    """A setting is given under a former key. The command line prints it as one line."""


def rename_keys(
    data: Mapping[str, Any], source: object = None, *, warn: bool = True
) -> dict[str, Any]:
    """Return settings data with former keys replaced by the present ones.

    Args:
        data: sections of settings.
        source: names where the data come from, such as a file, in the warning.
        warn: issue a :class:`RenamedKeyWarning` for each former key.

    Raises:
        SettingsError: a setting is given under both its keys.
    """
    result = dict(data)
    for old, new in RENAMED_KEYS.items():
        section, old_key = old.split(".")
        if isinstance(values := result.get(section), Mapping):
            new_key = new.rpartition(".")[2]
            result[section] = _rename(values, old_key, new_key, f"{section}.", source, warn)
    return result


def add_former_behavior(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's recorded settings with the values that its version had no keys for.

    A record has all keys of its version: one that it lacks was added since. Of a path that is
    refused now, as ``s3:/bucket``, the meaning stays: a directory of that name.
    """
    result = dict(data)
    for key, problem_of in _LITERAL_PATHS.items():
        section, name = key.split(".")
        values = result.get(section)
        if not isinstance(values, Mapping):
            continue
        path = values.get(name)
        if isinstance(path, str) and path and problem_of(path):
            result[section] = {**values, name: f"./{path}"}
    for key, value in FORMER_BEHAVIOR.items():
        section, name = key.split(".")
        if isinstance(values := result.get(section), Mapping):
            result[section] = {name: value, **values}
    return result


def rename_paths(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return values named by the paths of settings, with former paths replaced.

    Raises:
        SettingsError: a setting is given under both its paths.
    """
    for old, new in RENAMED_KEYS.items():
        values = _rename(values, old, new)
    return values


def _rename(
    values: Mapping[str, Any],
    old: str,
    new: str,
    prefix: str = "",
    source: object = None,
    warn: bool = True,
) -> Mapping[str, Any]:
    if old not in values:
        return values
    place = "" if source is None else f"{source}: "
    if new in values:
        raise SettingsError(
            f"{place}{prefix}{old} is the former name of {prefix}{new}: give only {prefix}{new}"
        )
    if warn:
        # Level 4 is the caller of load_settings, validate_settings or Settings.replace.
        message = f"{place}{prefix}{old} is now {prefix}{new}"
        warnings.warn(message, RenamedKeyWarning, stacklevel=4)
    return {new if key == old else key: value for key, value in values.items()}
