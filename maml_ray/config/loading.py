"""Read, merge, validate and write settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from maml_ray.common.json_data import MAX_DEPTH, NotJsonError, check_json
from maml_ray.common.safe_files import UnreadableFile, read_text
from maml_ray.common.yaml_data import YamlError, dump_yaml, parse_yaml
from maml_ray.config import limits
from maml_ray.config.error_messages import describe_validation_error, did_you_mean
from maml_ray.config.presets import PRESETS
from maml_ray.config.settings import Settings, SettingsError

MAX_FILE_BYTES = 100_000
"""A settings file is a page of text; anything larger is a mistake (a video, a checkpoint)."""


def load_settings(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """Read settings: defaults, then the preset, then the file, then ``key.path=value`` overrides.

    The preset is ``preset``, or what the file names as ``run.preset``.

    Raises:
        SettingsError: the file cannot be read, or anything in it or in the overrides is wrong.
    """
    own = _read(Path(path)) if path is not None else {}
    base = _merged(_base(own, preset, path), own)
    data = base
    for override in overrides:
        data = _merged(data, _parse_override(override))
    _check_preset_kept(base, data)
    try:
        return validate_settings(data)
    except SettingsError as error:
        raise _from_file(error, base, path) from None


def _check_preset_kept(base: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """An override comes too late to lie under the file: it would name a preset and take nothing."""
    before, after = (
        run.get("preset") if isinstance(run := tree.get("run"), Mapping) else None
        for tree in (base, data)
    )
    if after is not None and after != before:
        raise SettingsError(
            f"run.preset = {after!r:.60} is not allowed as an override: write --preset NAME"
        )


def _from_file(
    error: SettingsError, base: Mapping[str, Any], path: str | Path | None
) -> SettingsError:
    """``error`` with the name of the file before it, where the file alone is at fault."""
    if path is None:
        return error
    try:
        validate_settings(base)
    except SettingsError as own:
        if str(own) == str(error):
            return SettingsError(f"{path}: {error}")
    return error


def _base(own: Mapping[str, Any], preset: str | None, path: str | Path | None) -> Mapping[str, Any]:
    """The preset that lies under a file's ``own`` settings: the one asked for, or its own."""
    run = own.get("run")
    named = run.get("preset") if isinstance(run, Mapping) else None
    if preset is not None and isinstance(run, Mapping) and "preset" in run and named != preset:
        raise SettingsError(
            f"{path} says run.preset = {json.dumps(named, default=str)} and the command says "
            f"{preset!r}: leave the file out, or take what the preset decides out of it"
        )
    chosen = preset if preset is not None else named
    if chosen is None or not isinstance(chosen, str):
        return {}  # what is no name is refused with the other values
    if chosen not in PRESETS:
        where = f"{path}: " if preset is None else ""
        raise SettingsError(
            f"{where}run.preset = {chosen!r:.60} is not known{did_you_mean(chosen, PRESETS)}; "
            f"there is: {', '.join(sorted(PRESETS))}"
        )
    return _merged(PRESETS[chosen], {"run": {"preset": chosen}})


def validate_settings(data: Mapping[str, Any]) -> Settings:
    """Check plain data (the content of a settings file) and freeze it.

    Raises:
        SettingsError: an unknown key, a wrong type or a value out of range.
    """
    try:
        # JSON mode is the strict mode that still takes a list for a tuple and 1 for 1.0.
        settings = Settings.model_validate_json(json.dumps(check_json(data)), strict=True)
    except NotJsonError as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, allowed_keys=_fields_at)) from None
    problem = _too_large(settings) or _unfit_for_async_collection(settings)
    if problem:
        raise SettingsError(problem)
    return settings


def _too_large(settings: Settings) -> str | None:
    """What no machine holds, in settings that are each all right."""
    batch, judged, horizon = settings.meta_batch, settings.evaluation, settings.task.horizon
    return (
        limits.network_problem(settings.policy.hidden_sizes)
        or limits.iteration_problem(batch.tasks, batch.episodes, horizon, settings.inner.steps + 1)
        or limits.evaluation_problem(
            judged.tasks, judged.episodes, judged.steps or 0, horizon, prefix="evaluation."
        )
    )


def _unfit_for_async_collection(settings: Settings) -> str | None:
    """An inner step that takes for its own what an older version has collected, where there is one.

    A ratio to the recorded log-probabilities makes up for the difference; the others have none, and
    their gradients would be those of a policy that is not there any more.
    """
    inner = settings.inner
    if not settings.meta_batch.async_collection or inner.steps == 0 or inner.objective == "ratio":
        return None
    return (
        f"inner.objective = {inner.objective!r} does not weigh by ratios, and with "
        "meta_batch.async_collection = true the data are of the version before: take ratio, or "
        "leave async_collection out"
    )


def dump_settings(settings: Settings) -> str:
    """Settings as YAML that :func:`load_settings` reads back to the same settings."""
    return dump_yaml(settings.model_dump(mode="json"))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = read_text(path, max_bytes=MAX_FILE_BYTES)
    except UnreadableFile as error:
        raise SettingsError(f"cannot read the settings file {path}: {error}") from None
    data = _data(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise SettingsError(
            f"{path} must hold sections such as 'run:' and 'outer:', not {data!r:.60}"
        )
    return data


def _data(text: str, source: str) -> Any:
    try:
        return parse_yaml(text, source)
    except YamlError as error:
        raise SettingsError(str(error)) from None


def _parse_override(override: str) -> Mapping[str, Any]:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts) or len(parts) > MAX_DEPTH:
        raise SettingsError(
            f"cannot read the setting {override!r:.80}: write key.path=value, e.g. outer.epochs=4"
        )
    if len(text) > MAX_FILE_BYTES:
        raise SettingsError(f"the value of {key.strip():.80} is longer than {MAX_FILE_BYTES:,}")
    value = _data(text, f"the value of {key.strip():.80}")
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, section by section; a section without keys changes nothing."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(value, Mapping):
            result[key] = _merged(under if isinstance(under, Mapping) else {}, value)
        elif value is None and key in Settings.model_fields:
            continue
        else:
            result[key] = value
    return result


def _fields_at(location: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
