"""Plain data as YAML: text to data and back, and nothing that surprises.

No aliases (a few lines of them unfold to gigabytes), no merge keys, no repeated keys, no dates,
and 1e-3 is a number.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_DEEPEST = 40
"""Levels of nesting: more than data may have, fewer than Python's stack."""


class YamlError(ValueError):
    """Text that is not plain YAML data, told in one sentence."""


def dump_yaml(data: Any) -> str:
    """Plain data as YAML text that :func:`parse_yaml` reads back to the same."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Plain YAML data: no aliases (they can blow up), no merge or repeated keys, no dates."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise YamlError(f"line {mark.line + 1}: YAML aliases are not allowed")
        if self._depth == _DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise YamlError(f"line {line}: it is nested {_DEEPEST} levels deep")
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        # PyYAML lets these through where a tag such as !!int does not fit its value.
        except (ArithmeticError, ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, YamlError):
                raise
            kind = str(node.tag).rpartition(":")[2]
            raise YamlError(
                f"line {node.start_mark.line + 1} is not valid YAML: {node.value!r:.60} "
                f"cannot be of the type {kind!r:.60}"
            ) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        if not isinstance(node, yaml.MappingNode):  # tagged !!map
            raise YamlError(f"line {node.start_mark.line + 1}: it is not a mapping")
        for key_node, _ in node.value:
            line, key = key_node.start_mark.line + 1, key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlError(f"line {line}: a key must be text, not a list or a mapping")
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise YamlError(f"line {line}: merge keys (<<) are not allowed")
            if key in seen:
                raise YamlError(f"line {line}: the key {key!r:.60} is given twice")
            seen.add(key)
        return dict(super().construct_mapping(node, deep=deep))


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if "timestamp" not in tag]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Plain YAML data that :class:`_Loader` reads back as it was."""


# YAML 1.1 reads 1e-3 as text; people who write learning rates mean the number. The dumper knows
# of it too, so that it quotes a name such as "1e5".
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def parse_yaml(text: str, source: str) -> Any:
    """Plain data from YAML text; ``source`` names it in errors.

    Raises:
        YamlError: it is not YAML, or more than plain data.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except YamlError as error:
        raise YamlError(f"{source}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise _invalid(source, mark.line + 1 if mark else 1, words) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position] if isinstance(error.position, int) else ""
        words = f"the character {chr(error.character)!r} is not allowed"
        raise _invalid(source, before.count("\n") + 1, words) from None
    # PyYAML lets these through, of "\UFFFFFFFF" for one.
    except (yaml.YAMLError, ArithmeticError, ValueError, TypeError, LookupError) as error:
        raise _invalid(source, loader.line + 1 if loader else 1, str(error)) from None


def _invalid(source: str, line: int, words: str) -> YamlError:
    return YamlError(f"{source}: line {line} is not valid YAML: {words[:200]}")
