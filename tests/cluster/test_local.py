"""cluster/local.sh trains on three nodes and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir
from tests.cluster.files import CLUSTER
from tests.ports import listening_ports

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SCRIPT = str(CLUSTER / "local.sh")
SMALL = ["run.iterations=2", "task.horizon=20", "meta_batch.episodes=2", "evaluation.tasks=1"]
DEADLINE_S = 400.0


class Mark:
    """An environment variable that all processes of a script inherit, to find them afterwards."""

    def __init__(self) -> None:
        self.name, self.value = "MAML_RAY_TEST_MARK", uuid.uuid4().hex

    def processes(self) -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(self.name) == self.value:
                    found.append(" ".join(process.cmdline()) or process.name())
            except (psutil.Error, OSError):
                continue  # it has ended, or belongs to another user
        return found


def start(home: Path, mark: Mark, *arguments: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        mark.name: mark.value,
        "HOME": str(home),  # where a token of the user would be, which must not be touched
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_ADDRESS": "192.0.2.1:6379",  # another cluster, which must not be contacted
    }
    return subprocess.Popen(
        [SCRIPT, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def folders() -> set[Path]:
    return set(Path("/tmp").glob("mr.*"))


def test_a_run_is_seen_on_three_nodes_and_nothing_is_left(tmp_path: Path) -> None:
    home, run, mark, before = tmp_path / "home", tmp_path / "run", Mark(), folders()
    home.mkdir()
    settings = [part for setting in SMALL for part in ("--set", setting)]
    script = start(home, mark, "--run-dir", str(run), *settings)
    output, _ = script.communicate(timeout=DEADLINE_S)
    assert script.returncode == 0, output
    assert "actors were on 3 nodes: head, node-1, node-2\n" in output
    where = dict(re.findall(r"^(\S+) +was on (\S+)$", output, re.M))
    assert set(where) == {"learner", "rollout-0", "rollout-1", "rollout-2"}
    assert {where[f"rollout-{i}"] for i in range(3)} == {"head", "node-1", "node-2"}
    assert len(read_metrics(RunDir(run).metrics)) == 2
    assert mark.processes() == []
    assert folders() <= before
    assert not (home / ".ray").exists()


def test_a_failed_run_is_reported_and_nothing_is_left(tmp_path: Path) -> None:
    mark, before = Mark(), folders()
    script = start(tmp_path, mark, "--set", "outer.no_such_key=1")
    output, _ = script.communicate(timeout=DEADLINE_S)
    assert script.returncode == 2, output
    assert "outer.no_such_key" in output
    assert mark.processes() == []
    assert folders() <= before


def test_a_signal_during_training_leaves_nothing(tmp_path: Path) -> None:
    mark, before = Mark(), folders()
    script = start(
        tmp_path, mark, "--run-dir", str(tmp_path / "run"), "--set", "run.iterations=999"
    )
    assert script.stdout is not None
    lines: list[str] = []
    began = time.monotonic()
    while not any(line.startswith("iteration") for line in lines):
        lines.append(script.stdout.readline())
        assert lines[-1], "".join(lines)
        assert time.monotonic() - began < DEADLINE_S
    assert len(mark.processes()) > 10
    ports = listening_ports(script.pid)
    assert len(ports) > 10
    assert not any(ports.values()), ports
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=DEADLINE_S)
    assert script.returncode == 128 + signal.SIGTERM, output
    assert mark.processes() == []
    assert folders() <= before
    # The run had time to save what it had finished.
    assert "resume with: maml-ray train --resume" in output
