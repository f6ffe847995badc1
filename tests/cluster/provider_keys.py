"""Find the keys of `provider` that Ray's cluster launcher reads, from its sources.

Its schema accepts any other key there, so a misspelt one would silently mean the default.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import ray.autoscaler._private as autoscaler
from ray.autoscaler._private import constants

FOLDERS = {"aws": "aws", "gcp": "gcp", "local": "local"}


def known_keys(kind: str) -> frozenset[str]:
    """Return the keys that the launcher or the provider's module reads."""
    here = Path(autoscaler.__file__).parent
    sources = [*here.glob("*.py"), *(here / FOLDERS[kind]).rglob("*.py")]
    trees = [ast.parse(source.read_text(encoding="utf-8")) for source in sources]
    return frozenset(key for tree in trees for key in _keys_read(tree))


def unknown_keys(provider: dict[str, object]) -> set[str]:
    """Return the keys of a provider's section that nothing in Ray reads."""
    return set(provider) - known_keys(str(provider["type"]))


def _keys_read(tree: ast.AST) -> Iterator[str]:
    """Yield K of `provider[K]`, `provider.get(K)` and `K in provider`; constants are resolved."""
    for node in ast.walk(tree):
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and _is_provider(node.value):
            key = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "get" and _is_provider(node.func.value) and node.args:
                key = node.args[0]
        elif isinstance(node, ast.Compare) and _is_provider(node.comparators[0]):
            key = node.left
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value
        elif isinstance(key, ast.Name) and isinstance(getattr(constants, key.id, None), str):
            yield getattr(constants, key.id)


def _is_provider(node: ast.expr) -> bool:
    """Return whether an expression is `provider_config` or `config["provider"]`."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == "provider"
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return bool(name == "provider_config")
