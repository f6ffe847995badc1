"""Printed commands do in a shell what they say, whatever directories are called."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maml_ray.common.commands import import_option, quote_location, resume_hint
from maml_ray.common.locations import parse_location


def read(command: str) -> list[str]:
    """Return the words of a command as a shell passes them on."""
    return shlex.split(command)


@pytest.mark.parametrize(
    "location",
    [
        *("runs/a", "/mnt/with space", "it's", 'quo"te', "$HOME/x", "a$b;rm -rf", "läuft/здесь"),
        *("~", "~user", "-x", "s3:/bucket", "C:\\runs", "a\nb", "*", "s3://bucket/runs/a"),
    ],
)
def test_a_quoted_location_is_read_as_what_it_was(location: str) -> None:
    (word,) = read(quote_location(location))
    assert not word.startswith("-")
    assert Path(parse_location(word, "RUN")).absolute() == Path(location).absolute()


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_whatever_a_directory_is_called(name: str) -> None:
    directory = Path(name)
    (word,) = read(quote_location(directory))
    assert Path(parse_location(word, "RUN")).absolute() == directory.absolute()


def test_a_plain_path_is_not_quoted() -> None:
    assert quote_location(Path("runs/direction-20260101-120000")) == (
        "runs/direction-20260101-120000"
    )


def test_the_hint_is_a_command() -> None:
    line = resume_hint("/mnt/my $runs/it's", "my.tasks").splitlines()[-1]
    command = line.partition("resume with: ")[2]
    assert read(command)[:3] == ["maml-ray", "train", "--resume"]
    assert parse_location(read(command)[3], "--resume") == Path("/mnt/my $runs/it's")
    assert read(command)[4:] == ["--import", "my.tasks"]
    assert (resume_hint(None), import_option(None)) == ("", "")
