"""Say what to write instead of a value of the wrong type, from what was probably meant."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from maml_ray.common.yaml_data import YamlError, dump_inline, parse_yaml

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, [..., ...]",
    "pair": "[low, high]",
    "mapping": "keys and values, {key: value}",
}
_MAX_LENGTH = 60
"""Characters or entries of the longest value whose meaning is guessed."""
_NO = ("no", "off", "false", "f", "n", "0", "never", "disable", "disabled")
_YES = ("yes", "on", "true", "t", "y", "1", "always", "enable", "enabled")
_NOTHING = (*_NO, "none", "null", "nil", "nan", "~", "-", "")
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
_DIGITS = r"\d+(?:_\d+)*"
_NUMBER = rf"[-+]?(?:{_DIGITS}\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
"""What Python's float takes, too."""
_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "hr": 3600, "d": 86400}
_GIBIBYTES = {"m": 2**-10, "g": 1, "t": 2**10}
_MULTIPLES = {"k": 10**3, "m": 10**6, "b": 10**9}


def right_form(kind: str, value: Any, key: str = "", *, null_allowed: bool = False) -> str:
    """Return what to write instead of ``value``, such as ``"60 (seconds)"`` for "60s".

    Args:
        kind: what is wanted: int, float, bool, str, list, pair or mapping.
        value: plain data of another type.
        key: dotted key of the setting; its last part may end in a unit, as in ``stall_s``.
        null_allowed: whether null is a value, too.
    """
    word = value.strip().lower() if isinstance(value, str) else value
    if null_allowed and (word is False or (isinstance(word, str) and word in _NOTHING)):
        return "null"
    short = not isinstance(value, str | list | dict) or len(value) <= _MAX_LENGTH
    guess = _GUESSES[kind](value, key.rpartition(".")[2]) if short else None
    if guess is not None:
        return guess
    default = ", or leave the key out for the default" if value is None else ""
    return _KINDS[kind] + (" or null" if null_allowed else "") + default


def _guess_integer(value: Any, name: str) -> str | None:
    return _guess_number(value, name, whole=True)


def _guess_number(value: Any, name: str, *, whole: bool = False) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    number, remark = _read_number(value, name) if isinstance(value, str) else (value, "")
    if number is None or (whole and number != int(number)):
        return None
    return dump_inline(int(number) if whole else number) + remark


def _guess_boolean(value: Any, name: str) -> str | None:
    word = str(value).strip().strip(_QUOTES).lower()
    return "true" if word in _YES else "false" if word in _NO else None


def _guess_text(value: Any, name: str) -> str | None:
    if not isinstance(value, bool | int | float):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f'"{text}", in quotes'


def _guess_list(value: Any, name: str) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return dump_inline([value])
    if not isinstance(value, str):
        return None
    parts = [part for part in re.split(r"[\s,;x\u00d7]+", _unwrap(value)) if part]
    numbers = _read_numbers(parts)
    if numbers:
        return dump_inline(numbers)
    words = [part for part in re.split(r"[\s,;]+", _unwrap(value)) if part]
    return dump_inline(words) if words and all(map(str.isidentifier, words)) else None


def _guess_pair(value: Any, name: str) -> str | None:
    if not isinstance(value, str):
        return None
    inside = _unwrap(value)
    match = re.fullmatch(rf"({_NUMBER})\s*(?:\.\.+|to|[-,;:\u2013]|\s)\s*({_NUMBER})", inside)
    numbers = _read_numbers(match.groups()) if match else None
    return dump_inline(numbers) if numbers else None


def _guess_mapping(value: Any, name: str) -> str | None:
    entries = value if isinstance(value, list) else [value]
    merged: dict[str, Any] = {}
    for entry in entries:
        if isinstance(entry, str):  # "iterations:5", which YAML takes for text, or iterations = 5
            match = re.fullmatch(r"\s*(\w+)\s*[:=]\s*(\S.*)", entry, re.DOTALL)
            if match is None:
                return None
            try:
                entry = {match[1]: parse_yaml(match[2], "")}
            except YamlError:
                return None
        if not isinstance(entry, Mapping) or set(entry) & set(merged):
            return None
        merged.update(entry)
    if not merged:
        return None
    shown = f"{name}: {dump_inline(merged)}"
    return shown if shown.isprintable() and len(shown) <= 80 else None


_GUESSES = {
    "int": _guess_integer,
    "float": _guess_number,
    "bool": _guess_boolean,
    "str": _guess_text,
    "list": _guess_list,
    "pair": _guess_pair,
    "mapping": _guess_mapping,
}


def _unwrap(text: str) -> str:
    return text.strip(f"()[]{{}} \t\n{_QUOTES}")


def _read_numbers(parts: Sequence[str]) -> list[float] | None:
    """Return the numbers that texts stand for; None if one of them is none."""
    numbers = [_plain_number(part) for part in parts]
    return [number for number in numbers if number is not None] if None not in numbers else None


def _read_number(text: str, name: str) -> tuple[float | None, str]:
    """Return the number that a text stands for, and a remark on its form."""
    text = text.strip().rstrip(",;").strip(f"{_QUOTES} ").replace("\u2212", "-")
    number = _plain_number(text)
    if number is not None:
        return number, "" if text.startswith("0") else ", without quotes"
    if re.fullmatch(r"[-+]?\d{1,3}([,_ \u2019'\u00a0\u202f]\d{3})+(\.\d+)?", text):
        return _plain_number(re.sub(r"[^-+\d.]", "", text)), ", without separators"
    if re.fullmatch(r"[-+]?\d+,\d+", text):
        return _plain_number(text.replace(",", ".")), ", with a point"
    if match := re.fullmatch(rf"({_NUMBER})\s*%", text):
        return _rounded(float(match[1]) / 100), ""
    if match := re.fullmatch(r"10\s*(?:\^|\*\*)\s*([-+]?\d{1,2})", text):
        return 10 ** int(match[1]), ""
    if (match := re.fullmatch(rf"({_NUMBER})\s*/\s*({_NUMBER})", text)) and float(match[2]):
        return _rounded(float(match[1]) / float(match[2])), ""
    if name.endswith("_s"):
        return _read_seconds(text), " (seconds)"
    if match := re.fullmatch(rf"({_NUMBER})\s*([a-zA-Z]+)", text):
        number, unit = float(match[1]), match[2].lower()
        if name.endswith("_gib"):
            return _read_gibibytes(number, unit), " (GiB)"
        return _rounded(number * _MULTIPLES.get(unit, 1)), ""
    return None, ""


def _plain_number(text: str) -> float | None:
    if not re.fullmatch(_NUMBER, text):
        return None
    try:
        return int(text)
    except ValueError:
        number = float(text)
        return number if math.isfinite(number) else None


def _read_seconds(text: str) -> float | None:
    """Return the seconds of 60s, 5 min, 1h30m or 1:30."""
    if re.fullmatch(r"\d{1,2}(:[0-5]\d){1,2}", text):
        seconds = 0
        for part in text.split(":"):
            seconds = 60 * seconds + int(part)
        return seconds
    parts = re.findall(rf"({_NUMBER})\s*([a-zA-Z]+)\s*", text)
    if not parts or "".join(a + b for a, b in parts) != "".join(text.split()):
        return None
    total = 0.0
    for number, unit in parts:
        unit = unit.lower()
        short = unit if unit in _SECONDS else unit.removesuffix("s")
        short = {"second": "s", "minute": "m", "hour": "h", "day": "d"}.get(short, short)
        if short not in _SECONDS:
            return None
        total += float(number) * _SECONDS[short]
    return _rounded(total)


def _read_gibibytes(number: float, unit: str) -> float | None:
    scale = _GIBIBYTES.get(unit[0]) if unit[1:] in ("", "b", "ib") else None
    return None if scale is None else _rounded(number * scale)


def _rounded(number: float) -> float | None:
    """Return a whole number as an integer, and any other without the noise of its last digits.

    None if it is infinite, as 1e400 is.
    """
    if not math.isfinite(number):
        return None
    number = float(f"{number:.12g}")
    return int(number) if number == int(number) and abs(number) < 2**53 else number
