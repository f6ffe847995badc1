"""Write settings as a commented deploy.yaml."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from maml_ray.common.yaml_data import dump_inline
from maml_ray.config.section import Section
from maml_ray.config.settings import Settings

_WIDTH = 100
_COMMENT_COLUMN = 32
_SMALL = 0.01
"""Numbers closer to zero are written with an exponent."""
_HEADER = """\
# Settings of a run. This file lists every key; one that is left out has its default. Override a key
# on the command line, e.g. --set outer.epochs=6; `maml-ray explain outer` describes keys, and
# `maml-ray check deploy.yaml` prints the resolved settings and the resources they need.
"""


def commented_yaml(settings: Settings, schema: str | None = None) -> str:
    """Return all settings as YAML with their descriptions as comments.

    Args:
        settings: to be written.
        schema: path or URL of the JSON schema, for editors; a path relative to the file.
    """
    modeline = f"# yaml-language-server: $schema={schema}\n" if schema else ""
    sections = [
        "".join(f"{line}\n" for line in _section_lines(name, getattr(settings, name), ""))
        for name in Settings.model_fields
    ]
    return "\n".join([modeline + _HEADER, *sections])


def format_value(value: Any) -> str:
    """Return a setting's value as YAML on one line."""
    if isinstance(value, float) and 0.0 < abs(value) < _SMALL:
        return f"{Decimal(repr(value)).normalize():.{_digits(value)}e}"
    return dump_inline(value)


def section_description(section: type[Section]) -> str:
    """Return the first line of a section's docstring, without its markup."""
    return (section.__doc__ or "").partition("\n")[0].replace("``", "`")


def _section_lines(name: str, section: Section, indent: str) -> Iterator[str]:
    yield from _commented(f"{indent}{name}:", section_description(type(section)))
    indent += "  "
    values = section.model_dump(mode="json")
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            yield from _section_lines(key, value, indent)
        else:
            line = f"{indent}{key}: {format_value(values[key])}"
            yield from _commented(line, field.description or "")


def _commented(line: str, comment: str) -> Iterator[str]:
    """Yield ``line`` and its comment: next to it, or above a line that is too long for that."""
    fits = len(line) <= _COMMENT_COLUMN - 2
    start = " " * (_COMMENT_COLUMN if fits else len(line) - len(line.lstrip()))
    comments = textwrap.wrap(
        comment.removesuffix("."),
        _WIDTH,
        initial_indent=f"{start}# ",
        subsequent_indent=f"{start}#   ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    if fits:
        yield f"{line.ljust(_COMMENT_COLUMN)}{comments[0].lstrip()}"
        yield from comments[1:]
    else:
        yield from comments
        yield line


def _digits(value: float) -> int:
    """Return the number of decimals of the shortest mantissa that is exact; at least one."""
    return max(1, len(Decimal(repr(value)).normalize().as_tuple().digits) - 1)
