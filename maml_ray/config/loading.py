"""Read, merge, validate and write settings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maml_ray.common.json_data import MAX_DEPTH, NotJsonError, check_json
from maml_ray.common.locations import parse_path
from maml_ray.common.safe_files import UnreadableFile, read_text
from maml_ray.common.yaml_data import YamlError, dump_yaml, parse_yaml
from maml_ray.config.error_messages import did_you_mean
from maml_ray.config.presets import PRESETS
from maml_ray.config.renamed_keys import add_former_behavior, rename_keys
from maml_ray.config.section import dotted_keys, keys_at, to_plain
from maml_ray.config.settings import (
    PRESET_COMES_FIRST,
    Settings,
    SettingsError,
    without_other_tasks,
)

MAX_FILE_BYTES = 100_000
"""Of a settings file. Anything larger is a mistake, such as a video or a checkpoint."""
_OTHER_SETTING = re.compile(r"[\s,;]([a-z_]+(?:\.[a-z_]+)+)=")
"""Matches a second setting behind the value of the first."""


def load_settings(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    recorded: bool = False,
) -> Settings:
    """Merge and validate settings: defaults, preset, file, then overrides.

    Args:
        path: a YAML file with some or all settings.
        preset: name of a preset; by default the file's ``run.preset``.
        overrides: settings by key, such as ``{"outer.epochs": 4}``, or as a list of
            ``"outer.epochs=4"``; a mapping is merged into what it overrides.
        recorded: the file is the record of a run, which nobody edits: keys that have been
            renamed since are accepted without a warning, what it has no key for is as it was, and
            modules that it names are not imported (:attr:`TaskSettings.recorded_in`).

    Raises:
        SettingsError: the file cannot be read, or a setting or an override is invalid.
    """
    path = None if path is None else parse_path(path, "path")
    own = rename_keys(_read(path), path, warn=not recorded) if path is not None else {}
    own = add_former_behavior(own) if recorded else own
    base = _merge(_preset_settings(own, preset, path), own)
    data = base
    for override in _nested(overrides):
        data = _merge(data, rename_keys(override))
    _check_preset_kept(base, data)
    try:
        settings = validate_settings(data)
    except SettingsError as error:
        raise _name_file(error, base, path) from None
    folder = path.parent if recorded and path is not None else recorded_folder(path)
    return settings if folder is None else settings.as_recorded_in(str(folder))


def validate_settings(data: Mapping[str, Any], *, recorded: bool = False) -> Settings:
    """Validate plain data, such as the content of a settings file, and freeze it.

    Args:
        data: sections of settings.
        recorded: as for :func:`load_settings`.

    Raises:
        SettingsError: an unknown key, a wrong type or a value out of range.
    """
    try:
        data = rename_keys(check_json(data), warn=not recorded)
        data = add_former_behavior(data) if recorded else data
    except NotJsonError as error:
        raise SettingsError(str(error)) from None
    _check_nested(data)
    settings = Settings(**data)
    return settings.as_recorded_in("") if recorded else settings


def dump_settings(settings: Settings) -> str:
    """Return settings as YAML that :func:`load_settings` reads back unchanged."""
    return dump_yaml(settings.model_dump(mode="json"))


def recorded_folder(path: Path | None) -> Path | None:
    """Return the run directory whose record a settings file is; None if it is the user's own."""
    if path is None or path.name != "settings.yaml":
        return None
    is_run = any((path.parent / name).exists() for name in ("checkpoints", "metrics.jsonl"))
    return path.parent if is_run else None


def _preset_settings(
    own: Mapping[str, Any], preset: str | None, path: str | Path | None
) -> Mapping[str, Any]:
    """Return the settings of ``preset``, or of the preset that the file's ``own`` settings name."""
    run = own.get("run")
    in_file = run.get("preset") if isinstance(run, Mapping) else None
    if preset is not None and isinstance(run, Mapping) and "preset" in run and in_file != preset:
        raise SettingsError(
            f"{path} has run.preset = {json.dumps(in_file, default=str)}, but the command has "
            f"{preset!r}: drop the file, or remove the settings that the preset decides from it"
        )
    if preset is not None and not isinstance(preset, str):
        raise SettingsError(
            f"preset = {preset!r:.60} is not allowed: write a name; presets: "
            f"{', '.join(sorted(PRESETS))}"
        )
    name = preset if preset is not None else in_file
    if not isinstance(name, str):
        return {}  # validation rejects other types
    if name not in PRESETS:
        source = f"{path}: " if preset is None else ""
        raise SettingsError(
            f"{source}run.preset = {name!r:.60} is not known{did_you_mean(name, PRESETS)} "
            f"(presets: {', '.join(sorted(PRESETS))})"
        )
    return _merge(rename_keys(PRESETS[name].settings, f"preset {name}"), {"run": {"preset": name}})


def _check_preset_kept(base: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Reject an override of ``run.preset``: it is merged too late for its settings to apply."""
    before, after = (
        run.get("preset") if isinstance(run := tree.get("run"), Mapping) else None
        for tree in (base, data)
    )
    if isinstance(after, str) and after != before:  # what is no text is refused by its own check
        raise SettingsError(PRESET_COMES_FIRST.format(after))


def _name_file(
    error: SettingsError, base: Mapping[str, Any], path: str | Path | None
) -> SettingsError:
    """Return ``error``, prefixed with the file's name if the file alone causes it."""
    if path is None:
        return error
    try:
        validate_settings(base)
    except SettingsError as without_overrides:
        if str(without_overrides) == str(error):
            return SettingsError(f"{path}: {error}")
    return error


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = read_text(path, max_bytes=MAX_FILE_BYTES)
    except UnreadableFile as error:
        raise SettingsError(f"cannot read the settings file {path}: {error}") from None
    data = _parse(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise SettingsError(
            f"{path} must contain sections such as 'run:' and 'outer:', not {data!r:.60}"
        )
    _check_nested(data, text, f"{path}: ")
    return data


def _check_nested(
    data: Mapping[str, Any], text: str = "", source: str = "", above: tuple[str, ...] = ()
) -> None:
    """Reject settings written as ``run.iterations: 5``, showing the nested form."""
    for key, value in data.items():
        first, *names = str(key).split(".")
        if names and names[0] in keys_at(Settings, (*above, first)):
            lines = enumerate(text.splitlines(), 1)
            line = next((f"line {n}: " for n, line in lines if line.strip().startswith(key)), "")
            shown = json.dumps(value, default=str, skipkeys=True)[:60]
            for name in reversed([*above[1:], first, *names] if above else names):
                shown = f"{{{name}: {shown}}}"
            section = above[0] if above else first
            raise SettingsError(
                f"{source}{line}write nested keys, {section}: {shown:.80}, not {key:.80}"
            )
        if isinstance(value, Mapping) and keys_at(Settings, (*above, str(key))):
            _check_nested(value, text, source, (*above, str(key)))


def _parse(text: str, source: str) -> Any:
    try:
        return parse_yaml(text, source)
    except YamlError as error:
        raise SettingsError(str(error)) from None


def _nested(overrides: Mapping[str, Any] | Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield each override as sections of settings."""
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            yield _nest(str(key), to_plain(value))
        return
    if isinstance(overrides, str) or not (
        isinstance(overrides, Sequence) and all(isinstance(each, str) for each in overrides)
    ):
        raise SettingsError(
            f"overrides = {overrides!r:.80} is not allowed: write a list of strings or a mapping, "
            'e.g. {"outer.epochs": 4}'
        )
    for override in overrides:
        key, separator, text = override.partition("=")
        key = key.strip()
        if not separator or key.startswith("-"):
            raise _unreadable(override)
        if len(text) > MAX_FILE_BYTES:
            raise SettingsError(f"the value of {key:.80} is longer than {MAX_FILE_BYTES:,}")
        if not text.strip():
            raise SettingsError(
                f"{key:.80} has no value: write {key:.80}=VALUE, or null where none is allowed"
            )
        if (other := _OTHER_SETTING.search(text)) and other[1] in dotted_keys(Settings):
            raise SettingsError(
                f"{override!r:.80} sets {key:.80} and {other[1]}: write --set in front of each"
            )
        yield _nest(key, _parse(text, f"the value of {key:.80}"), override)


def _nest(key: str, value: Any, override: str | None = None) -> dict[str, Any]:
    parts = key.split(".")
    if not all(parts) or len(parts) > MAX_DEPTH:
        raise _unreadable(key if override is None else override)
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def _unreadable(override: str) -> SettingsError:
    meant = re.fullmatch(r"[-\s]*([\w.]+)(?:\s*[:=]\s*|\s+)(\S.*)", override)
    example = "key.path=value, e.g. outer.epochs=4"
    if meant is not None and meant[1] in dotted_keys(Settings):
        example = f"{meant[1]}={meant[2]}"
    return SettingsError(f"cannot read the setting {override!r:.80}: write {example:.80}")


def _merge(base: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``update`` merged in, recursively; an empty section changes nothing."""
    result = dict(base)
    for key, value in update.items():
        if isinstance(value, Mapping):
            section = result.get(key)
            section = section if isinstance(section, Mapping) else {}
            if key == "task":
                section = without_other_tasks(section, value)
            result[key] = _merge(section, value)
        elif value is not None or key not in Settings.model_fields:
            result[key] = value
    return result
