"""Inject a schedule of faults into a run and collect the outcome."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import numpy as safetensors_numpy

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir
from tests.chaos.faults import Fault
from tests.chaos.machine import machine
from tests.chaos.undisturbed import fingerprint, undisturbed
from tests.chaos.victim import RunDied, Victim

APART = 2
"""Minimum number of iterations between two faults."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a run with injected faults.

    Attributes:
        faults: how often each kind was injected.
        iterations: how many the run finished.
        failures: that the run counted itself, since it was last resumed.
        fingerprint, undisturbed: SHA-256 of the final parameters, and of an undisturbed run's.
        resumes: seconds from the command to the first iteration after it.
        farewells: seconds from a request to stop to the driver's end.
        wall_s: seconds in all.
    """

    faults: Counter[str]
    iterations: int
    failures: int
    fingerprint: str
    undisturbed: str
    resumes: tuple[float, ...]
    farewells: tuple[float, ...]
    wall_s: float

    def table(self) -> str:
        """Return the outcome as text."""
        lines = [f"{count:4d}  {kind}" for kind, count in sorted(self.faults.items())]
        lines += [
            f"{self.faults.total():4d}  faults in all, in {self.wall_s:.0f} s",
            f"{self.iterations:4d}  iterations",
            f"SHA-256 of the parameters      {self.fingerprint}",
            f"the same of an undisturbed run {self.undisturbed}",
            _seconds("from a resume to its first iteration", self.resumes),
            _seconds("from a request to stop to the end", self.farewells),
        ]
        return "\n".join(lines)


def settings_of_the_run() -> Settings:
    """Return settings of a run on three one-CPU nodes, which goes on until it is stopped."""
    return validate_settings(
        {
            "run": {
                "name": "soak",
                "seed": 7,
                "iterations": 1_000_000,
                "checkpoint_every": 1,
                "keep_checkpoints": 3,
            },
            "task": {"horizon": 20},
            "policy": {"hidden_sizes": [16]},
            "meta_batch": {"tasks": 6, "episodes": 3},
            # Nothing that depends on the number of iterations, which is known only at the end.
            "outer": {"epochs": 2, "final_learning_rate": None},
            "evaluation": {"tasks": 1, "episodes": 1, "video": False},
            "cluster": {
                "learner_threads": 1,
                "task_timeout_s": 20.0,
                "stall_s": 4.0,
                "max_task_attempts": 10,  # what is hit here is hit at random
            },
            "faults": {"infrastructure": 1000, "missed_checkpoints": 10_000},
        }
    )


def soak(
    faults: Sequence[Fault], seed: int, folder: Path, told: Callable[[str], None] = print
) -> Outcome:
    """Inject ``faults`` into a run, one after the other, and then stop it.

    Raises:
        RunDied: the run did not get over one of them.
    """
    settings, rng, began = settings_of_the_run(), random.Random(seed), time.monotonic()
    done: Counter[str] = Counter()
    with machine() as nodes:
        victim = Victim(nodes, settings, folder)
        try:
            victim.wait_for_progress(iterations=APART)
            for number, fault in enumerate(faults, 1):
                told(f"{number:3d}/{len(faults)} at iteration {victim.iterations()}: {fault.kind}")
                time.sleep(0.5 * rng.random())  # at any moment of an iteration
                fault.do(victim, rng)
                done[fault.kind] += 1
                victim.wait_for_progress(iterations=APART)
            victim.end(signal.SIGTERM)
        except RunDied as died:
            raise RunDied(f"after {dict(done)}: {died}") from None
        finally:
            victim.close()
    rows = read_metrics(RunDir(folder).metrics)
    assert [row["iteration"] for row in rows] == list(range(len(rows)))
    as_long = settings.replace({"run.iterations": len(rows)})
    return Outcome(
        faults=done,
        iterations=len(rows),
        failures=rows[-1]["failures"],
        fingerprint=fingerprint(_final_parameters(RunDir(folder))),
        undisturbed=fingerprint(undisturbed(as_long).parameters),
        resumes=tuple(victim.resumes),
        farewells=tuple(victim.farewells),
        wall_s=time.monotonic() - began,
    )


def _final_parameters(folder: RunDir) -> dict[str, NDArray[Any]]:
    newest = max(path for path in folder.checkpoints.iterdir() if path.name.isdigit())
    parameters: dict[str, NDArray[Any]]
    parameters = safetensors_numpy.load_file(newest / "parameters.safetensors")
    return parameters


def _seconds(what: str, values: Sequence[float]) -> str:
    if not values:
        return f"seconds {what}: none"
    middle = sorted(values)[len(values) // 2]
    return f"seconds {what}: median {middle:.1f}, longest {max(values):.1f}, of {len(values)}"
