"""``python -m tests.benchmarks.startup``: from the command to the first finished iteration.

Runs ``maml-ray train`` unchanged and ends it after its first iteration. Its activities are traced
from outside (``trace/sitecustomize.py``), in its own process and in the actors'. With ``--beside``,
measurements of another checkout alternate with those of this one.
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
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.arguments import HERE, count, parse_checkouts
from tests.benchmarks.machine import machine, versions

TRACE = Path(__file__).parent / "trace"
PATIENCE_S = 120.0
SCRIPT = "import sys; from maml_ray.cli.main import main; sys.exit(main())"
"""What the installed command consists of."""
COMMANDS = {"maml-ray --help": ("--help",), "maml-ray check deploy.yaml": ("check", "deploy.yaml")}

Moments = dict[tuple[str, str], float]
"""Seconds since the command, of the first beginning and the first end of each thing."""


def main() -> None:
    """Measure in alternation, and print medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.startup")
    parser.add_argument("--repetitions", type=count, default=3, help="number of starts")
    chosen = parse_checkouts(parser)
    checkouts = {"here": HERE} | ({"beside": chosen.beside.resolve()} if chosen.beside else {})
    info = {"machine": machine(), "versions": versions()}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(chosen.repetitions):
        for name, checkout in checkouts.items():
            measured[name].append(_start(checkout, chosen.settings.resolve()))
    medians = {name: _medians(rounds) for name, rounds in measured.items()}
    if chosen.json:
        print(json.dumps({**info, "medians": medians, "rounds": measured}, indent=2))
        return
    for name, value in info["machine"].items():
        print(f"{name:<20}{value}")
    _print(medians)


def _start(checkout: Path, settings: Path) -> dict[str, float]:
    """Seconds of each part of one start of training, and of the short commands."""
    with tempfile.TemporaryDirectory(prefix="st") as folder:
        processes = _traced_run(checkout, settings, Path(folder))
    driver = next(each for each in processes if ("end", "LearnerHandle.update") in each)
    parts = dict(driver_parts(driver))
    parts["total"] = driver["end", "LearnerHandle.update"]
    for kind in ("LearnerActor", "RolloutActor"):
        those = [each for each in processes if ("end", f"{kind}.__init__") in each]
        rows = [dict(_actor_parts(each, kind)) for each in those]
        for name in rows[0]:
            parts[f"{kind}: {name}"] = statistics.mean(row[name] for row in rows)
    for name, arguments in COMMANDS.items():
        parts[name] = _seconds(checkout, arguments)
    return parts


def driver_parts(driver: Mapping[tuple[str, str], float]) -> Iterator[tuple[str, float]]:
    """Yield the parts of a driver's start; together they are the whole."""
    ends = {
        "Python starts": driver["begin", "import maml_ray.cli.main"],
        "imports of the command line": driver["end", "import maml_ray.cli.main"],
        "imports of training (ray, numba)": driver["end", "import maml_ray.runs.train"],
        "settings, checkpoint, run directory": driver["begin", "init"],
        "ray.init": driver["end", "init"],
        "until the rollout actors are up": driver["end", "RolloutPool.wait_until_ready"],
        "until the learner is up": driver["end", "LearnerHandle.wait_until_ready"],
        "storage, dashboard link, metrics": driver["begin", "ActorSystem.run_iteration"],
        "first iteration: collect": driver["begin", "LearnerHandle.update"],
        "first iteration: learn": driver["end", "LearnerHandle.update"],
    }
    before = 0.0
    for name, moment in ends.items():
        yield name, moment - before
        before = moment


def _actor_parts(actor: Moments, kind: str) -> Iterator[tuple[str, float]]:
    """Seconds of an actor's process; the first is since the command."""
    begin, end = ("begin", "import maml_ray.runtime.actors"), ("end", f"{kind}.__init__")
    yield "its process begins, after", actor["begin", "process"]
    yield "until its module is asked for", actor[begin] - actor["begin", "process"]
    imported = actor["end", begin[1]]
    yield "imports (mujoco, numba, ours)", imported - actor[begin]
    yield "until it is constructed", actor["begin", f"{kind}.__init__"] - imported
    yield "construction; of a learner torch, too", actor[end] - actor["begin", f"{kind}.__init__"]
    yield "up, after", actor[end]


def _traced_run(checkout: Path, settings: Path, folder: Path) -> list[Moments]:
    trace = folder / "trace"
    trace.mkdir()
    command = [
        *(sys.executable, "-c", SCRIPT, "train", str(settings)),
        *("--run-dir", str(folder / "run"), "--set", "run.iterations=1000"),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TRACE}{os.pathsep}{checkout}",
        "STARTUP_TRACE": str(trace),
    }
    with (folder / "log").open("wb") as log:
        began = time.time()
        program = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
        try:
            own = trace / f"{program.pid}.jsonl"
            while not (own.exists() and '"end", "LearnerHandle.update"' in own.read_text()):
                if program.poll() is not None or time.time() - began > PATIENCE_S:
                    sys.exit(f"no iteration has finished:\n{(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.2)
        finally:
            program.send_signal(signal.SIGTERM)
            program.wait(60)
    return [moments(file, began) for file in trace.iterdir()]


def moments(file: Path, began: float) -> Moments:
    """Return the first moments of a trace, in seconds after ``began``."""
    first: Moments = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        at, edge, what = json.loads(line)
        first.setdefault((edge, what), at - began)
    return first


def _seconds(checkout: Path, arguments: tuple[str, ...]) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-c", SCRIPT, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run(command, env=environment, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def _print(medians: Mapping[str, Mapping[str, float]]) -> None:
    first = next(iter(medians.values()))
    head = "".join(f"{name:>16}" for name in medians)
    print(f"\n{'seconds (medians), share of the whole':<52}{head}")
    for name in first:
        print(f"{name:<52}" + "".join(_cell(each, name) for each in medians.values()))


def _cell(seconds: Mapping[str, float], name: str) -> str:
    inside = list(seconds).index(name) <= list(seconds).index("total")
    share = f"{seconds[name] / seconds['total']:>6.0%}" if inside else ""
    return f"{seconds[name]:>10.2f}{share:<6}"


if __name__ == "__main__":
    main()
