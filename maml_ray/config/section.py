"""Define the base class of sections of settings, and what a dotted key such as outer.epochs is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from maml_ray.common.json_data import NotJsonError, check_json
from maml_ray.config.error_messages import SettingsError, describe_validation_error


class Section(BaseModel):
    """Base of all sections: frozen, no type conversion, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)

    def __init__(self, /, **values: Any) -> None:
        """Validate ``values``: plain data, as in a settings file, or sections.

        Raises:
            SettingsError: an unknown key, a wrong type or a value out of range.
        """
        try:
            plain = check_json({key: to_plain(value) for key, value in values.items()})
            # Strict JSON mode accepts a list for a tuple, 1 for 1.0, and a mapping for a section.
            valid = self.model_validate_json(json.dumps(plain), strict=True)
        except NotJsonError as error:
            raise SettingsError(str(error)) from None
        except ValidationError as error:
            message = describe_validation_error(
                error,
                null_allowed=lambda location: _allows_null(type(self), location),
                allowed_keys=lambda location: keys_at(type(self), location),
                dotted_keys=list(dotted_keys(type(self))),
            )
            raise SettingsError(message) from None
        super().__init__(**{name: getattr(valid, name) for name in valid.model_fields_set})

    # Keeps pydantic from calling the constructor for nested sections.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    if not TYPE_CHECKING:  # type checkers know that fields are frozen

        def __setattr__(self, name: str, value: Any) -> None:
            """Refuse to change a setting."""
            raise SettingsError(
                f"settings cannot be changed, so {name} stays {getattr(self, name, None)!r:.60}: "
                'settings.replace("outer.epochs", 4) returns new ones'
            )

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield what ``repr`` shows: the settings that differ from their defaults."""
        yield from changes(self)

    def __str__(self) -> str:
        """Return the same as ``repr``."""
        return repr(self)


def keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Return the keys of the section at ``location`` in ``model``; none if it is no section."""
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _allows_null(model: type[BaseModel], location: Sequence[str]) -> bool:
    """Return whether the setting at ``location`` in ``model`` may be null."""
    *sections, name = location
    for part in sections:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return False
        model = annotation
    return name in model.model_fields and type(None) in get_args(
        model.model_fields[name].annotation
    )


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of all settings in ``model``."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, Section):
            yield from dotted_keys(type(field.default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def by_key(
    model: type[BaseModel], values: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield dotted key and plain value of each setting in ``values``, nested like ``model``."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and keys_at(model, key.split(".")):
            yield from by_key(model, value, f"{key}.")
        else:
            yield key, to_plain(value)


def changes(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of each setting that differs from its default."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from changes(value, f"{prefix}{name}.")
        elif value != field.default:
            yield f"{prefix}{name}", value


def to_plain(value: Any) -> Any:
    """Return a section as a mapping, a NumPy scalar or array as numbers, and a path as text."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
