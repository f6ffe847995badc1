"""Odd values and odd text: what a slip or malice puts where a value belongs."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from maml_ray.config.settings import Settings

DEFAULTS: dict[str, Any] = Settings().model_dump(mode="json")


def places(tree: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every key of a settings tree as a path, sections included."""
    found: list[tuple[str, ...]] = []
    for key, value in tree.items():
        found.append((*above, key))
        if isinstance(value, dict):
            found += places(value, (*above, key))
    return found


PLACES = places(DEFAULTS)

WORDS = (
    "",
    " ",
    "x" * 500,
    "é漢🦎",
    "\u202egnp.exe",
    "a\0b",
    "\ud800",
    "a\nb",
    "\x1b[2J",
    "../../etc/passwd",
    "/dev/zero",
    "[/bold]",
    "{{ 7 * 7 }}",
    "%s%n",
    "'; drop",
    "-1",
    "nan",
    "null",
    "true",
    "~",
)
HUGE = (-1, 0, 2**63, 2**64, -(2**63), 10**9, 10**18, 10**400)
REALS = (-1.0, 0.0, -0.0, 1e308, 5e-324, 1.5, float("nan"), float("inf"), float("-inf"))

words = st.sampled_from(WORDS) | st.text(max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(HUGE)
    | st.integers()
    | st.sampled_from(REALS)
    | st.floats()
    | words
)
not_plain = st.sampled_from([{1, 2}, b"bytes", 1j, object, ..., {1: 2}, {None: 1}, {(1, 2): 3}])
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


anything = trees | not_plain | st.sampled_from([20, 21, 500, 20_000]).map(nested)


def misspelt(key: str) -> st.SearchStrategy[str]:
    """Keys that are nearly ``key``."""
    return st.sampled_from(
        [key + "s", key[:-1], key.upper(), f" {key}", key + "\n", f"{key}.{key}", key[::-1] + "_"]
    ) | words.filter(lambda word: word != key)


AS_YAML = {
    "python": "!!python/object/apply:os.system ['true']",
    "module": "!!python/module:os",
    "binary": "!!binary aGVsbG8=",
    "set": "!!set {a, b}",
    "ordered": "!!omap [a: 1, b: 2]",
    "pairs": "!!pairs [a: 1, a: 2]",
    "own tag": "!mine {a: 1}",
    "integer": "!!int many",
    "real": "!!float much",
    "boolean": "!!bool perhaps",
    "null": "!!null 5",
    "mapping": "!!map [1]",
    "sequence": "!!seq {a: 1}",
    "text": "!!str [1]",
    "day": "!!timestamp soon",
    "value": "!!value =",
    "merge": "{<<: {seed: 1}}",
    "merge list": "{<<: [{seed: 1}, {seed: 2}]}",
    "anchor": "&a [1]",
    "alias": "*a",
    "bomb": "[&a [x, x], &b [*a, *a], &c [*b, *b], [*c, *c]]",
    "itself": "&a [*a]",
    "brackets": "[" * 400,
    "braces": "{" * 400,
    "closed": "[" * 300 + "]" * 300,
    "deep": "{a: " * 60 + "1" + "}" * 60,
    "question": "? " * 5000,
    "dashes": "- " * 5000,
    "tab": "\t- 1",
    "list key": "{[1, 2]: 3}",
    "mapping key": "{{a: 1}: 3}",
    "no key": "{: 1}",
    "number key": "{1: 2}",
    "null key": "{null: 1}",
    "twice": "{a: 1, a: 2}",
    "digits": "9" * 5000,
    "sexagesimal": "1" + ":59" * 2000,
    "bits": "0b" + "1" * 20_000,
    "hexadecimal": "0x" + "f" * 20_000,
    "octal": "0" + "7" * 20_000,
    "infinity": ".inf",
    "no number": ".nan",
    "overflow": "1e999",
    "surrogate": '"\\ud800"',
    "null byte": '"\\0"',
    "high": '"\\UFFFFFFFF"',
    "open quote": '"never closed',
    "documents": "1\n---\n2",
    "directive": "%YAML 9.9",
    "colon": "a: b: c",
    "percent": "%",
    "at": "@x",
    "tick": "`x`",
    "block": "|\n  a\n b",
}
"""Text behind ``key: `` that is no value, or more than one."""

yaml_values = st.sampled_from(sorted(AS_YAML)).map(lambda name: AS_YAML[name])


def as_yaml(tree: Any) -> str:
    """Return a tree as text: JSON is YAML, and its writer accepts anything here."""
    return json.dumps(tree)
