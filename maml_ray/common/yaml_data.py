"""Read and write plain data as YAML, without the features that surprise.

Aliases are refused (a few lines of them unfold to gigabytes), and so are tags, merge keys and
repeated keys. A date is text, and so are 010 and 1:30, which YAML 1.1 reads as 8 and 90; 1e-3 is a
number.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

_TEXT = ("timestamp", "merge", "value")
"""Types that PyYAML would resolve to from the form of a scalar, and that are text here."""


class YamlError(ValueError):
    """Text is not plain YAML data; the message is one sentence."""


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML that :func:`parse_yaml` reads back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def dump_inline(value: Any) -> str:
    """Return plain data as YAML on one line, as a value within a mapping."""
    mapping = yaml.dump(
        {"value": value}, Dumper=_Dumper, sort_keys=False, default_flow_style=True, width=math.inf
    )
    return str(mapping).strip()[len("{value: ") : -1]


def parse_yaml(text: str, source: str) -> Any:
    """Return the plain data of YAML text; ``source`` names it in errors.

    Raises:
        YamlError: it is not YAML, or has more than plain data.
    """
    line, loader = 1, None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except YamlError as error:
        raise YamlError(f"{source}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = f"{error.context or ''} {error.problem or ''}"
        if "'\\t'" in problem:
            raise YamlError(f"{source}: line {line}: indent with spaces, not with a tab") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        problem = f"the character {chr(error.character)!r} is not allowed"
    # PyYAML does not wrap what int() and chr() raise, as for "\UFFFFFFFF".
    except (yaml.YAMLError, ArithmeticError, ValueError, LookupError, RecursionError) as error:
        line = loader.line + 1 if loader else 1
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    raise YamlError(f"{source}: line {line} is not valid YAML: {' '.join(problem.split())[:200]}")


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(f"line {line}: YAML aliases are not allowed")
        if event.tag is not None:
            tag = event.tag.removeprefix("tag:yaml.org,2002:")
            raise YamlError(f"line {line}: YAML tags are not allowed ({tag!r:.60})")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError(f"line {line}: a key must be text, not a list or a mapping")
            if key.value in seen:
                raise YamlError(f"line {line}: the key {key.value!r:.60} is given twice")
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep=deep))


class _Dumper(yaml.SafeDumper):
    pass


def _without_surprises(tag: str, pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Return a pattern of numbers that matches neither 010 (octal) nor 1:30 (base 60)."""
    if not tag.endswith((":int", ":float")):
        return pattern
    return re.compile(rf"(?![-+]?0[0-9_])(?!.*:)(?:{pattern.pattern})", pattern.flags)


_Loader.yaml_implicit_resolvers = {
    letter: [
        (tag, _without_surprises(tag, pattern))
        for tag, pattern in resolvers
        if not tag.endswith(_TEXT)
    ]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1 reads 1e-3 as text; people who write learning rates mean the number. The dumper has the
# same rule, so that it quotes a name such as "1e5".
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )
