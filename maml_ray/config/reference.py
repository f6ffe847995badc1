"""Describe all settings: for docs/settings.md, the JSON schema and ``maml-ray explain``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from maml_ray.config.error_messages import SettingsError, did_you_mean
from maml_ray.config.presets import PRESETS
from maml_ray.config.renamed_keys import rename_paths
from maml_ray.config.section import Section, by_key
from maml_ray.config.settings import Settings
from maml_ray.config.template import format_value, section_description

SCHEMA_FILE = Path(__file__).with_name("settings.schema.json")
"""The JSON schema of a settings file, for editors."""


@dataclass(frozen=True)
class Setting:
    """A setting.

    Attributes:
        key: dotted, such as ``outer.epochs``.
        allowed: type and range in words.
        default: as YAML.
        description: one or two sentences.
    """

    key: str
    allowed: str
    default: str
    description: str

    def in_presets(self) -> dict[str, str]:
        """Return the presets that set it and their values as YAML."""
        values = {name: dict(by_key(Settings, preset.settings)) for name, preset in PRESETS.items()}
        return {name: format_value(of[self.key]) for name, of in values.items() if self.key in of}


@dataclass(frozen=True)
class SettingsSection:
    """A section: its key, description and settings, without those of sections in it."""

    key: str
    description: str
    settings: tuple[Setting, ...]


@cache
def sections() -> tuple[SettingsSection, ...]:
    """Return all sections in the order of ``deploy.yaml``; a nested one follows its parent."""
    return tuple(_sections("", Settings()))[1:]


def find(key: str) -> Setting | SettingsSection:
    """Return the setting or section of a dotted key; former keys are accepted with a warning.

    Raises:
        SettingsError: there is none.
    """
    (key,) = rename_paths({key: None})
    known: dict[str, Setting | SettingsSection] = {section.key: section for section in sections()}
    known |= {setting.key: setting for section in sections() for setting in section.settings}
    if key not in known:
        listed = f"; sections: {', '.join(Settings.model_fields)}"
        hint = did_you_mean(key, known, known) or listed
        raise SettingsError(f"{key:.80} is not a setting{hint}")
    return known[key]


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a settings file."""
    schema = _without_noise(Settings.model_json_schema())
    schema["properties"] = {
        name: {"anyOf": [{"$ref": value["$ref"]}, {"type": "null"}]}  # a section may be empty
        for name, value in schema["properties"].items()
    }
    schema["$defs"]["RunSettings"]["properties"]["preset"]["enum"] = [None, *PRESETS]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "maml-ray",
        **schema,
    }


def markdown() -> str:
    """Return the tables of presets and settings in Markdown."""
    presets = [
        (f"`{name}`", preset.description, f"{_env_steps(name):,}", preset.duration)
        for name, preset in PRESETS.items()
    ]
    parts = ["## Presets\n", _table(("preset", "", "environment steps", "duration"), presets)]
    for section in sections():
        rows = [
            (
                f"`{setting.key.rpartition('.')[2]}`",
                setting.allowed,
                f"`{setting.default}`",
                setting.description,
            )
            for setting in section.settings
        ]
        header = ("key", "allowed", "default", "description")
        parts += [f"## {section.key}\n", f"{section.description}\n", _table(header, rows)]
    return "\n".join(parts)


def _sections(key: str, section: Section) -> Iterator[SettingsSection]:
    prefix = f"{key}." if key else ""
    values = section.model_dump(mode="json")
    schema = type(section).model_json_schema()["properties"]
    nested: list[SettingsSection] = []
    settings: list[Setting] = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            nested += _sections(f"{prefix}{name}", value)
        else:
            allowed = _describe(schema[name])
            default = format_value(values[name])
            settings.append(Setting(f"{prefix}{name}", allowed, default, field.description or ""))
    yield SettingsSection(key, section_description(type(section)), tuple(settings))
    yield from nested


def _describe(schema: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema allows."""
    if "enum" in schema:
        return _alternatives([format_value(value) for value in schema["enum"]])
    if "anyOf" in schema:
        return _alternatives([_describe(each) for each in schema["anyOf"]])
    kind = schema["type"]
    if kind in ("integer", "number"):
        return f"{kind}{_describe_range(schema)}"
    if kind == "array":
        return f"list of at most {schema['maxItems']}, each: {_describe(schema['items'])}"
    words = {"boolean": "true or false", "string": "text", "object": "mapping", "null": "null"}
    return words[kind]


def _describe_range(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if "exclusiveMaximum" in schema and schema["type"] == "integer":
        high = schema["exclusiveMaximum"] - 1
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_number(schema[name])}" for name, sign in signs.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _alternatives(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def _without_noise(schema: Any) -> Any:
    """Return a schema without titles, defaults of sections and what pydantic versions differ in."""
    if isinstance(schema, list):
        return [_without_noise(each) for each in schema]
    if not isinstance(schema, dict):
        return schema.replace("``", "`") if isinstance(schema, str) else schema
    return {
        key: _without_noise(value)
        for key, value in schema.items()
        if not (key == "title" and isinstance(value, str))
        and not (key == "default" and "$ref" in schema)
        and not (key == "additionalProperties" and value is True)
    }


def _env_steps(preset: str) -> int:
    """Return the environment steps of a run with a preset."""
    settings = Settings().replace(PRESETS[preset].settings)
    batch = settings.meta_batch
    per_task = batch.episodes * settings.task.horizon * (settings.inner.steps + 1)
    return settings.run.iterations * batch.tasks * per_task


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
