from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from maml_ray.persistence import provenance
from maml_ray.persistence.provenance import (
    current_provenance,
    read_provenance,
    record_provenance,
)
from maml_ray.persistence.run_dir import RunDir


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    os.mkfifo(folder.provenance)
    record_provenance(folder)
    assert read_provenance(folder) == []


def test_each_attempt_is_recorded_with_machine_and_versions(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    assert read_provenance(folder) == []
    for _ in range(2):
        record_provenance(folder)
    first, second = read_provenance(folder)
    assert first.host == second.host == platform.node()
    assert f"{os.cpu_count()} CPUs" in first.machine
    assert first.versions["python"] == platform.python_version()


def test_a_line_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    record_provenance(folder)
    good = json.loads(folder.provenance.read_text())
    bad = [{**good, "host": 3}, {**good, "versions": "1.0"}, {**good, "commit": []}, [], "torn"]
    lines = [json.dumps(line) for line in (*bad, good)]
    folder.provenance.write_text("\n".join([*lines, '{"host": "a']))
    assert read_provenance(folder) == read_provenance(folder)[:1]
    assert len(read_provenance(folder)) == 1


def test_a_run_directory_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    record_provenance(RunDir(tmp_path / "missing"))
    assert not (tmp_path / "missing").exists()


def test_the_commit_is_that_of_the_current_directory_if_the_package_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages/maml_ray/persistence/provenance.py"
    monkeypatch.setattr(provenance, "__file__", str(package))
    monkeypatch.chdir(tmp_path)
    assert current_provenance().commit is None
    author = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    (tmp_path / "tasks.py").write_text("")
    for command in (["init", "-q"], ["add", "tasks.py"], [*author, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], check=True)
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True)
    commit = current_provenance().commit
    assert commit is not None
    assert head.startswith(commit)
    (tmp_path / "tasks.py").write_text("changed")
    assert current_provenance().commit == f"{commit}-dirty"
