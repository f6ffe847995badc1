"""The command line in this process, with its outcome and what it has done to the files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from maml_ray.cli.main import main
from maml_ray.common.errors import TrainingFailed

REACHED = "training was reached"
SENTENCE = 1500
"""Characters of the longest sentence that a person would read, names of files included."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def run(*arguments: str) -> Outcome:
    """``maml-ray`` with ``arguments``; an error that is no exit goes on to the caller."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code: Any = None
    with (
        mock.patch.object(sys, "argv", ["maml-ray", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Outcome(int(code or 0), *texts)


@contextlib.contextmanager
def training_refused() -> Iterator[None]:
    """Training that is reached fails at once: no Ray is started."""

    def training(*arguments: Any, **keywords: Any) -> None:
        raise TrainingFailed(REACHED)

    with (
        mock.patch("maml_ray.runs.train.compile_ahead"),
        mock.patch("maml_ray.runs.train.train_on_ray", training),
    ):
        yield


def assert_refused(outcome: Outcome, *names: str) -> None:
    """One sentence on stderr, exit code 2, and the names in it."""
    assert outcome.code == 2, outcome
    assert "Traceback" not in outcome.out + outcome.err
    own = [line for line in outcome.err.splitlines() if line.startswith("maml-ray: ")]
    if own:  # otherwise click's own box, which names the option
        assert len(own) == 1
        assert len(own[0]) < SENTENCE
    for name in names:
        assert name in outcome.err, (name, outcome.err)


def fingerprint(folder: Path) -> dict[str, str]:
    """Every path below ``folder`` and what it is."""
    found = {}
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files):
            each = Path(path) / name
            found[str(each.relative_to(folder))] = _what(each)
    return found


def _what(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "folder" if path.is_dir() else "other"
