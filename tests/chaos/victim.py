"""The run that things are done to: its driver as a program of its own, its folder, its cluster."""

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
"""How long any single step forward may take; then the run is called dead."""
_TRAIN = (sys.executable, "-m", "maml_ray", "train")
EXPECTED_EXIT = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}


class RunDied(AssertionError):
    """The run did not get over what was done to it."""


class Victim:
    """One run of ``maml-ray train``, begun and resumed as a person would.

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
        """How many have been finished and written down."""
        return len(read_metrics(self.folder.metrics)) if self.folder.metrics.exists() else 0

    def hit(self, kind: tuple[str, str], number: signal.Signals, rng: random.Random) -> int:
        """Send a signal to one of the run's workers; which."""
        self._wait(lambda: bool(self.machine.workers(kind)), f"no {kind[0]} to be seen")
        pid = self.machine.hit(kind, number, rng)
        if pid is None:  # it has gone by itself in between
            return self.hit(kind, number, rng)
        if number == signal.SIGSTOP:
            self._stopped.append(pid)
        return pid

    def let_go(self, pid: int) -> None:
        """Go on, if it is still there."""
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGCONT)

    def end(self, number: signal.Signals) -> None:
        """Send the driver a signal, and see it end as it should."""
        self._driver.send_signal(number)
        began = time.monotonic()
        code = self._driver.wait(timeout=PATIENCE_S)
        took = time.monotonic() - began
        if code != EXPECTED_EXIT[number]:
            raise RunDied(f"{number.name} ended the driver with {code}:\n{self.last_words()}")
        if number != signal.SIGKILL:
            self.farewells.append(took)

    def begin_again(self) -> None:
        """Begin again where it was, and do not wait for anything."""
        self._driver = self._start("--resume", str(self.folder.path))

    def newest_checkpoint(self) -> int:
        """The number of the newest checkpoint: where a resumed run begins."""
        whole = self.folder.checkpoints.glob("*/manifest.json")  # what is written last
        return max(int(path.parent.name) for path in whole if path.parent.name.isdigit())

    def resume(self) -> None:
        """Begin again where it was, and see it finish an iteration."""
        before, began = self.iterations(), time.monotonic()
        self.begin_again()
        self.wait_until_started()
        self._wait(lambda: self.iterations() > before, "no iteration after a resume")
        self.resumes.append(time.monotonic() - began)

    def wait_until_started(self) -> None:
        """Until the driver says that it is on its way."""
        self._wait(lambda: "rollout actor" in self._of_this_driver(), "the driver does not start")

    def wait_for_progress(self, iterations: int = 1) -> None:
        """Until so many more iterations are finished, or the run is."""
        goal = self.iterations() + iterations
        self._wait(
            lambda: self.iterations() >= goal or self._driver.poll() is not None, "no progress"
        )

    def finish(self) -> None:
        """Wait for the end of the run, which is to be a good one."""
        try:
            code = self._driver.wait(timeout=4 * PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise RunDied(f"the run does not end:\n{self.last_words()}") from None
        if code != 0:
            raise RunDied(f"the run ended with {code}:\n{self.last_words()}")

    def damage_newest_checkpoint(self, rng: random.Random) -> None:
        """Truncate or alter a file of it; the one before it stays."""
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
        """Checkpoints cannot be written: in the place of their folder lies a file."""
        self.folder.checkpoints.rename(self._hidden)
        self.folder.checkpoints.touch()

    def show_storage(self) -> None:
        """They can again."""
        self.folder.checkpoints.unlink()
        self._hidden.rename(self.folder.checkpoints)

    def last_words(self, lines: int = 25) -> str:
        """The end of what the driver has printed."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def close(self) -> None:
        """End what is left of it."""
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
