"""``python -m tests.benchmarks.recovery``: from a kill to the next finished iteration.

Runs ``maml-ray train`` unchanged, kills its learner, its driver or a node, and reads from a trace
(``trace/sitecustomize.py``) when the next iteration has finished, and what came in between. With
``--beside``, another checkout is measured afterwards.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from tests.benchmarks.arguments import HERE, count, parse_checkouts
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.startup import PATIENCE_S, SCRIPT, TRACE, driver_parts, moments
from tests.chaos.machine import Machine

CASES = ("learner", "driver", "node")
TOTAL = "kill to the next finished iteration"
USUAL = 6
"""Iterations before a kill; the median time of the last of them is an iteration's usual time."""
FINISHED, CONSTRUCTED = "LearnerHandle.update", "LearnerActor.__init__"
UPDATED, REPLACED = "LearnerActor.update", "LearnerHandle._restart"

Seconds = dict[str, float]
"""Duration by name of the part."""


class Program:
    """A run of ``maml-ray train`` whose processes are traced.

    Args:
        checkout: whose code runs.
        folder: an empty directory.
        arguments: further ones of the command.
    """

    def __init__(self, checkout: Path, folder: Path, *arguments: str) -> None:
        self._checkout, self._folder = checkout, folder
        self._trace = folder / "trace"
        self._trace.mkdir()
        self.run_dir = folder / "run"
        self._process: subprocess.Popen[bytes]
        every = ("--set", "run.checkpoint_every=1", "--set", "run.iterations=1000000")
        self.start("--run-dir", str(self.run_dir), *every, *arguments)

    def start(self, *arguments: str) -> float:
        """Start a driver; return the moment."""
        command = [sys.executable, "-c", SCRIPT, "train", *arguments]
        with (self._folder / "log").open("ab") as log:
            began = time.time()
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **trace_environment(self._checkout, self._trace)},
                cwd=self._folder,
                stdout=log,
                stderr=log,
            )
        return began

    def kill(self) -> float:
        """Kill the driver; return the moment."""
        moment = time.time()
        self._process.kill()
        self._process.wait(60)
        return moment

    def ends(self, what: str) -> list[float]:
        """Return when calls of ``what`` have ended in the driver."""
        return _times(self._trace / f"{self._process.pid}.jsonl", "end", what)

    def learner(self) -> int:
        """Return the process id of the learner that did the latest update."""
        last = {
            path: times[-1]
            for path in self._trace.iterdir()
            if (times := _times(path, "end", UPDATED))
        }
        return int(max(last, key=lambda path: last[path]).stem)

    def standby(self) -> int | None:
        """Return the process id of a learner that is up and has done no update; None without."""
        for path in self._trace.iterdir():
            idle = not _times(path, "begin", UPDATED)
            if idle and _times(path, "end", CONSTRUCTED) and psutil.pid_exists(int(path.stem)):
                return int(path.stem)
        return None

    def moments(self, pid: int, since: float) -> Mapping[tuple[str, str], float]:
        """Return the first moments of a process, in seconds after ``since``."""
        return moments(self._trace / f"{pid}.jsonl", since)

    @property
    def driver_pid(self) -> int:
        return self._process.pid

    def wait_for(self, until: Callable[[], Any], what: str) -> None:
        """Wait for a condition; end the benchmark if it does not come true."""
        deadline = time.monotonic() + PATIENCE_S
        while not until():
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{what}:\n{(self._folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def wait_for_iterations(self, number: int) -> None:
        """Wait for so many more iterations."""
        goal = len(self.ends(FINISHED)) + number
        self.wait_for(lambda: len(self.ends(FINISHED)) >= goal, "no iteration has finished")

    def close(self) -> None:
        """End the driver."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


def trace_environment(checkout: Path, trace: Path) -> dict[str, str]:
    """Return the variables that let processes be traced into the directory ``trace``."""
    return {"PYTHONPATH": f"{TRACE}{os.pathsep}{checkout}", "STARTUP_TRACE": str(trace)}


def after_learner(program: Program, kill: Callable[[int], None], *, standby: bool) -> Seconds:
    """Kill the learner, or its node, and return the parts of the time to the next iteration."""
    program.wait_for_iterations(USUAL)
    if standby:
        program.wait_for(program.standby, "no standby learner is ready")
        program.wait_for_iterations(2)
    victim, replaced = program.learner(), len(program.ends(REPLACED))
    usual = statistics.median(_intervals(program.ends(FINISHED))[-USUAL:])
    killed = time.time()
    kill(victim)
    program.wait_for(lambda: len(program.ends(REPLACED)) > replaced, "the death is not noticed")
    noticed = program.ends(REPLACED)[replaced]

    def finished() -> list[float]:
        return [end for end in program.ends(FINISHED) if end > noticed]

    program.wait_for(finished, "no iteration has finished")
    ends = program.ends(FINISHED)
    before = max(end for end in ends if end < noticed)
    parts = {
        "noticed after (with the rest of the collection)": noticed - killed,
        "from there to the update's end": finished()[0] - noticed,
        TOTAL: finished()[0] - killed,
        "beyond an iteration's usual time": finished()[0] - before - usual,
    }
    born = program.moments(program.learner(), noticed)
    imports = born["begin", "import maml_ray.runtime.actors"]
    if imports > 0.0:  # it is not the standby
        parts["  of it: a process starts, until our code is imported"] = imports
        parts["  of it: imports, also PyTorch's, and kernels"] = born["end", CONSTRUCTED] - imports
    return parts


def after_driver(program: Program) -> Seconds:
    """Kill the driver, resume the run, and return the parts of the time to the next iteration."""
    program.wait_for_iterations(USUAL)
    killed = program.kill()
    began = program.start("--resume", str(program.run_dir))
    program.wait_for_iterations(1)
    parts = dict(driver_parts(program.moments(program.driver_pid, began)))
    return {**parts, TOTAL: program.ends(FINISHED)[0] - killed}


@contextmanager
def local_run(checkout: Path, settings: Path, *arguments: str) -> Iterator[Program]:
    """Start a run that starts Ray itself."""
    with tempfile.TemporaryDirectory(prefix="re", ignore_cleanup_errors=True) as folder:
        program = Program(checkout, Path(folder), str(settings), *arguments)
        try:
            yield program
        finally:
            program.close()


@contextmanager
def cluster_run(
    checkout: Path, settings: Path, *arguments: str, gpu_nodes: int
) -> Iterator[tuple[Program, Machine]]:
    """Start a run on a cluster: a head, a node with two CPUs, and nodes for learners.

    The latter have a GPU in name only, on which Ray places a learner, which then uses the CPU.
    Ray's health checks are as they come.
    """
    with (
        tempfile.TemporaryDirectory(prefix="re", ignore_cleanup_errors=True) as folder,
        mock.patch.dict(os.environ, trace_environment(checkout, Path(folder) / "trace")),
    ):
        nodes = Machine(nodes=0)
        try:
            nodes.add_node(cpus=2)
            for _ in range(gpu_nodes):
                nodes.add_node(cpus=0, gpus=1)
            address = ("--address", nodes.address)
            program = Program(checkout, Path(folder), str(settings), *address, *arguments)
            try:
                yield program, nodes
            finally:
                program.close()
        finally:
            nodes.close()


def kill_process(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def measure(
    checkout: Path, settings: Path, rounds: int, *, only: Collection[str], standby: bool
) -> dict[str, Seconds]:
    """Return the medians of each case's parts, and print each kill as it is measured.

    Args:
        checkout: whose code is measured.
        settings: file of the run.
        rounds: kills of each kind.
        only: which of CASES to measure.
        standby: also measure with ``cluster.standby_learner``.
    """
    results: dict[str, list[Seconds]] = {}

    def add(case: str, parts: Seconds) -> None:
        print(f"{checkout}: {case}: {parts[TOTAL]:.2f} s", file=sys.stderr, flush=True)
        results.setdefault(case, []).append(parts)

    with_standby = ("--set", "cluster.standby_learner=true")
    settings_of = {"": ()} | ({", with a standby": with_standby} if standby else {})
    for suffix, arguments in settings_of.items():
        if "learner" in only:
            with local_run(checkout, settings, *arguments) as program:
                for _ in range(rounds):
                    parts = after_learner(program, kill_process, standby=bool(arguments))
                    add(f"the learner is killed{suffix}", parts)
        if "node" in only:
            with cluster_run(checkout, settings, *arguments, gpu_nodes=2) as (program, nodes):

                def kill_node(pid: int, nodes: Machine = nodes) -> None:
                    nodes.remove_nodes({nodes.node_of(pid)})

                parts = after_learner(program, kill_node, standby=bool(arguments))
                add(f"the learner's node is killed{suffix}", parts)
    if "driver" in only:
        with local_run(checkout, settings) as program:
            for _ in range(rounds):
                add("the driver is killed, and resumed", after_driver(program))
    return {case: _medians(rows) for case, rows in results.items()}


def main() -> None:
    """Measure and print medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.recovery")
    parser.add_argument("--repetitions", type=count, default=3, help="kills of each kind")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, help="what to kill")
    chosen = parse_checkouts(parser)
    settings = chosen.settings.resolve()
    info = {"machine": machine(), "versions": versions()}
    rounds, only = chosen.repetitions, chosen.only
    measured = {"here": measure(HERE, settings, rounds, only=only, standby=True)}
    if chosen.beside:
        other = chosen.beside.resolve()
        measured["beside"] = measure(other, settings, rounds, only=only, standby=False)
    if chosen.json:
        print(json.dumps({**info, "medians": measured}, indent=2))
        return
    for name, value in info["machine"].items():
        print(f"{name:<20}{value}")
    for case, parts in measured["here"].items():
        print(f"\n{case + ': seconds (medians)':<60}" + "".join(f"{n:>8}" for n in measured))
        for part in parts:
            cells = (results.get(case, {}).get(part) for results in measured.values())
            print(f"{part:<60}" + "".join("       -" if s is None else f"{s:8.2f}" for s in cells))


def _times(path: Path, edge: str, what: str) -> list[float]:
    if not path.exists():
        return []
    written = path.read_text().rpartition("\n")[0]  # without a line that is being written
    rows = map(json.loads, written.splitlines())
    return [moment for moment, *of in rows if of == [edge, what]]


def _intervals(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def _medians(rows: list[Seconds]) -> Seconds:
    names = {name for row in rows for name in row}
    ordered = [name for name in max(rows, key=len) if name in names]
    return {name: statistics.median([r[name] for r in rows if name in r]) for name in ordered}


if __name__ == "__main__":
    main()
