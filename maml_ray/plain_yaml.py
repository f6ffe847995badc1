"""Plain data as YAML: text to data and back, and nothing that surprises.

No aliases (a few lines of them unfold to gigabytes), no repeated keys, no dates, and 1e-3 is a
number.
"""

from __future__ import annotations

import re
from typing import Any

import yaml


class YamlError(ValueError):
    """Text that is not plain YAML data, told in one sentence."""


def dump_yaml(data: Any) -> str:
    """Plain data as YAML text that :func:`parse_yaml` reads back to the same."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


class _Loader(yaml.SafeLoader):
    """Plain YAML data: no aliases (they can blow up), no repeated keys, no dates."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise YamlError(f"line {mark.line + 1}: YAML aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise YamlError(f"line {line}: the key {key_node.value!r} is given twice")
            seen.add(key_node.value)
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
    try:
        return yaml.load(text, Loader=_Loader)
    except YamlError as error:
        raise YamlError(f"{source}: {error}") from None
    # PyYAML lets these through where a tag such as !!int does not fit its value.
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as error:
        problem = " ".join(str(error).split())
        raise YamlError(f"{source} is not valid YAML: {problem[:300]}") from None
