"""Every command in cluster/ is accepted by its program."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest
from typer.exceptions import TyperException

from tests.cluster.command_checks import CHECKS, check_files, program
from tests.cluster.commands import (
    Command,
    in_comments,
    in_inline_code,
    in_line,
    in_markdown,
    in_yaml,
)
from tests.cluster.files import CLUSTER
from tests.cluster.kubernetes import KUBERNETES

README = CLUSTER / "README.md"
CHECKED_PROGRAMS = ("maml-ray", "ray", "pip")
MANIFESTS = sorted(CLUSTER.glob("*.yaml")) + sorted(KUBERNETES.rglob("*.yaml"))


def only_checked_programs(commands: Iterator[Command]) -> list[Command]:
    """Return the commands of the programs that are checked in mixed text."""
    return [command for command in commands if program(command) in CHECKED_PROGRAMS]


def all_commands() -> list[Command]:
    found = [*in_markdown(README), *in_inline_code(README)]
    for path in MANIFESTS:
        found += only_checked_programs(in_yaml(path)) + list(in_comments(path))
    return found + list(in_comments(CLUSTER / "Dockerfile"))


@pytest.mark.parametrize("command", all_commands(), ids=str)
def test_the_command_is_accepted(command: Command) -> None:
    CHECKS[program(command)](list(command.words[1:]))
    if program(command) == "ray":
        check_files([word for word in command.words if " " not in word])


def test_commands_are_found_in_every_kind_of_text() -> None:
    sources = {command.source for command in all_commands()}
    assert {"README.md", "aws.yaml", "rayjob.yaml", "Dockerfile"} <= sources
    assert len(all_commands()) > 60


@pytest.mark.parametrize(
    "wrong",
    [
        "maml-ray train deploy.yaml --no-such-option",
        "maml-ray no-such-command",
        "maml-ray train --set cluster.no_such_key=1",
        "maml-ray train no-such-file.yaml",
        "ray up --no-such-option cluster/aws.yaml",
        "ray job submit --no-such-option -- maml-ray train",
        "ray job submit -- maml-ray train --no-such-option",
        'ray exec cluster/aws.yaml "maml-ray status --no-such-option"',
        "make no-such-target",
        "pip wheel --no-such-option .",
        "docker push registry.example.com/maml-ray:1.0.0-cpu",
        "docker build -f cluster/Dockerfile --build-arg DEVICES=cpu -t maml-ray:2.60.0-cpu .",
        "kubectl apply -f cluster/kubernetes/no-such-file.yaml",
        "kubectl port-forward service/no-such-svc 8265",
        "kubectl create secret generic maml-ray-token --from-literal=token=x",
    ],
)
def test_a_wrong_command_is_caught(wrong: str) -> None:
    (command,) = in_line(wrong, "here")
    refusals = (click.ClickException, TyperException, AssertionError, ValueError, TypeError)
    with pytest.raises((*refusals, SystemExit)):
        CHECKS[program(command)](list(command.words[1:]))


def test_links_of_the_readme_exist() -> None:
    links = re.findall(r"\]\((?!https:)([^)]+)\)", README.read_text(encoding="utf-8"))
    assert len(links) >= 6
    check_files([f"cluster/{link}" for link in links])
