"""Extract the commands in the files of cluster/ and in its README."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_OPERATORS = {"&&", "||", ";", "|", "&"}
_ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
_OPTIONAL = re.compile(r"(?<= )\[([^\]]*)\](?= |\.\.\.|$)")
_ELLIPSIS = re.compile(r"\.\.\.(?= |$)")


@dataclass(frozen=True)
class Command:
    """A program with its arguments, and the file that contains it."""

    words: tuple[str, ...]
    source: str

    def __str__(self) -> str:
        return f"{self.source}: {shlex.join(self.words)[:90]}"


_COMMAND = re.compile(r"(maml-ray|ray|make|pip|kubectl|docker) .*( --|=|\.yaml)", re.S)
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def in_markdown(path: Path) -> Iterator[Command]:
    """Yield the commands of code blocks without a language."""
    for language, block in _FENCED.findall(path.read_text(encoding="utf-8")):
        if not language:
            for line in block.replace("\\\n", " ").splitlines():
                yield from in_line(line, path.name)


def in_inline_code(path: Path) -> Iterator[Command]:
    """Yield the commands between single backquotes that have options or files."""
    text = _FENCED.sub("", path.read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`]+)`", text):
        if _COMMAND.match(code):
            yield from in_line(code.replace("\n", " "), path.name)


def in_yaml(path: Path) -> Iterator[Command]:
    """Yield the commands of ``maml-ray``, ``ray`` and ``pip`` in the values of a YAML file."""
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        for value in _strings(document):
            if re.search(r"(^|[\s/;])(maml-ray|ray|pip) [a-z-]", value):
                yield from in_line(value, path.name)


def in_comments(path: Path) -> Iterator[Command]:
    """Yield the commands that comments indent or put between backquotes."""
    for line in path.read_text(encoding="utf-8").splitlines():
        comment = line.partition("# ")[2] if line.lstrip().startswith("#") else ""
        if comment.startswith("  "):
            yield from in_line(comment.strip(), path.name)
        for code in filter(_COMMAND.match, re.findall(r"`([^`]+)`", comment)):
            yield from in_line(code, path.name)


def in_line(line: str, source: str) -> Iterator[Command]:
    """Yield the commands of a shell line, without variable assignments."""
    for words in _split(_ELLIPSIS.sub("", _OPTIONAL.sub(r"\1", line))):
        while words and _ASSIGNMENT.fullmatch(words[0]):
            words = words[1:]
        if words:
            yield Command(tuple(words), source)


def _split(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in _OPERATORS:
            yield words
            words = []
        else:
            words.append(word)
    yield words


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
