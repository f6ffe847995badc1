"""Drive one run as a separate program, to inject faults into it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from maml_ray.config.loading import dump_settings
from maml_ray.config.settings import Settings
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir
from tests.chaos.machine import Machine

PATIENCE_S = 240.0
"""Maximum seconds without progress before the run counts as dead."""
_TRAIN = (sys.executable, "-m", "maml_ray", "train")
EXPECTED_EXIT = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


class RunDied(AssertionError):
    """The run did not recover from a fault."""


class Victim:
    """One run of ``maml-ray train``, started and resumed from the command line.

    Attributes:
        resumes: seconds from a resume's command to its first finished iteration.
        farewells: seconds from a request to stop to the driver's end.

    Args:
        machine: the cluster.
        settings: of the run.
        folder: where it is to be.
    """

    def __init__(self, machine: Machine, settings: Settings, folder: Path) -> None:
        self.machine = machine
        self.folder = RunDir(folder)
        self.resumes: list[float] = []
        self.farewells: list[float] = []
        self._log = folder.with_suffix(".log")
        self._file = folder.with_suffix(".yaml")
        self._file.write_text(dump_settings(settings), encoding="utf-8")
        self._stopped: list[int] = []
        self._driver = self._start(str(self._file), "--run-dir", str(folder))

    def iterations(self) -> int:
        """Return the number of finished iterations."""
        return len(read_metrics(self.folder.metrics)) if self.folder.metrics.exists() else 0

    def hit(self, kind: tuple[str, str], number: signal.Signals, rng: random.Random) -> int:
        """Send a signal to one of the run's workers; return its process id."""
        self._wait(lambda: bool(self.machine.workers(kind)), f"no {kind[0]} to be seen")
        pid = self.machine.hit(kind, number, rng)
        if pid is None:  # it has gone by itself in between
            return self.hit(kind, number, rng)
        if number == signal.SIGSTOP:
            self._stopped.append(pid)
        return pid

    def let_go(self, pid: int) -> None:
        """Resume a stopped process, if it still exists."""
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)

    def end(self, number: signal.Signals) -> None:
        """Send the driver a signal and check its exit code."""
        self._driver.send_signal(number)
        began = time.monotonic()
        code = self._driver.wait(timeout=PATIENCE_S)
        took = time.monotonic() - began
        if code != EXPECTED_EXIT[number]:
            raise RunDied(f"{number.name} ended the driver with {code}:\n{self.last_words()}")
        if number != signal.SIGKILL:
            self.farewells.append(took)

    def begin_again(self) -> None:
        """Resume the run without waiting."""
        self._driver = self._start("--resume", str(self.folder.path))

    def newest_checkpoint(self) -> int:
        """Return the iteration of the newest checkpoint, from which a resumed run continues."""
        whole = self.folder.checkpoints.glob("*/manifest.json")  # what is written last
        return max(int(path.parent.name) for path in whole if path.parent.name.isdigit())

    def resume(self) -> None:
        """Resume the run and wait for an iteration."""
        before, began = self.iterations(), time.monotonic()
        self.begin_again()
        self.wait_until_started()
        self._wait(lambda: self.iterations() > before, "no iteration after a resume")
        self.resumes.append(time.monotonic() - began)

    def wait_until_started(self) -> None:
        """Wait until the driver reports its rollout actors."""
        self._wait(lambda: "rollout actor" in self._of_this_driver(), "the driver does not start")

    def wait_for_progress(self, iterations: int = 1) -> None:
        """Wait until ``iterations`` more are finished, or the run is."""
        goal = self.iterations() + iterations
        self._wait(
            lambda: self.iterations() >= goal or self._driver.poll() is not None, "no progress"
        )

    def damage_newest_checkpoint(self, rng: random.Random) -> None:
        """Truncate or alter a file of the newest checkpoint, unless it is the only one."""
        folders = sorted(path for path in self.folder.checkpoints.iterdir() if path.name.isdigit())
        if len(folders) < 2:
            return
        file = rng.choice(sorted(folders[-1].iterdir()))
        content = bytearray(file.read_bytes())
        if rng.random() < 0.5:
            content = content[: len(content) // 2]
        else:
            content[rng.randrange(len(content))] ^= 0xFF
        file.write_bytes(content)

    def hide_storage(self) -> None:
        """Make checkpoints fail: replace their directory with a file."""
        self.folder.checkpoints.rename(self._hidden)
        self.folder.checkpoints.touch()

    def show_storage(self) -> None:
        """Let checkpoints be written again."""
        self.folder.checkpoints.unlink()
        self._hidden.rename(self.folder.checkpoints)

    def last_words(self, lines: int = 25) -> str:
        """Return the end of the driver's output."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """Kill the remaining processes."""
        if self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait(timeout=60)
        for pid in self._stopped:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)

    @property
    def _hidden(self) -> Path:
        return self.folder.path / "checkpoints.hidden"

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self._begins_at = log.tell()
            return subprocess.Popen(
                [*_TRAIN, "--address", self.machine.address, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _of_this_driver(self) -> str:
        return self._log.read_bytes()[self._begins_at :].decode(errors="replace")

    def _wait(self, until: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            if self._driver.poll() is not None and not until():
                raise RunDied(f"the driver has ended too early:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise RunDied(f"{otherwise} for {PATIENCE_S:.0f} s:\n{self.last_words()}")
            time.sleep(0.05)
