"""A locale with ASCII only: everything is printed, and files are UTF-8 (LC_ALL=C)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
_PROGRAM = r"""
import pathlib, sys
from rich.console import Console
from maml_ray.cli.main import main
from maml_ray.common.safe_files import read_text, write_atomic
from maml_ray.reporting.progress import show_any_text

assert (sys.stdout.encoding, sys.getfilesystemencoding()) == ("ascii", "ascii")
show_any_text()
Console().print("l\u00e4uft \u2026")
write_atomic(pathlib.Path("written"), "l\u00e4uft \u2026")
assert read_text(pathlib.Path("written"), max_bytes=99) == "l\u00e4uft \u2026"
sys.argv = ["maml-ray", "check", "--set", "run.directory=l\u00e4uft"]
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 in every locale")
def test_what_ascii_lacks_is_printed_as_an_escape_and_written_as_utf8(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], cwd=tmp_path, env=ASCII, capture_output=True, timeout=120
    )
    assert done.stdout == b"l\\xe4uft \\u2026\n", done.stderr
    assert (tmp_path / "written").read_bytes() == "läuft …".encode()
    assert done.returncode == 2
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith(b"maml-ray: run.directory = 'l\\xe4uft' is not allowed: the locale")
    assert sentence.endswith(b"set LC_ALL=C.UTF-8")
