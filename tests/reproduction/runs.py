"""Train and evaluate a run once: finished work is kept, interrupted work is resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from maml_ray.config.loading import dump_settings
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir
from tests.reproduction.experiments import Experiment

TASKS, EPISODES = 40, 20
"""The protocol of Finn et al. 2017, figure 5, whose policies take up to 3 gradient steps."""


def run_folder(base: Path, experiment: Experiment, seed: int) -> RunDir:
    """Return the run directory of an experiment and seed."""
    return RunDir(base / f"{experiment.name}-seed{seed}")


def train(base: Path, experiment: Experiment, seed: int) -> RunDir:
    """Train or resume a run; return at once if it is done."""
    folder, settings = run_folder(base, experiment, seed), experiment.settings(seed)
    if _finished_iterations(folder) == settings.run.iterations and folder.evaluation.exists():
        return folder
    if folder.checkpoints.is_dir():
        _maml_ray("train", "--resume", str(folder.path))
        return folder
    base.mkdir(parents=True, exist_ok=True)
    file = base / f"{folder.path.name}.yaml"
    file.write_text(dump_settings(settings), encoding="utf-8")
    _maml_ray("train", str(file), "--run-dir", str(folder.path))
    return folder


def evaluate(folder: RunDir, steps: int) -> None:
    """Evaluate a run by the protocol, once, after 0 to ``steps`` gradient steps."""
    if folder.evaluation.exists():
        results = json.loads(folder.evaluation.read_text(encoding="utf-8"))
        if (results["tasks"], results["episodes"]) == (TASKS, EPISODES):
            return
    counts = ("--steps", str(steps), "--tasks", str(TASKS), "--episodes", str(EPISODES))
    _maml_ray("evaluate", str(folder.path), *counts)


def _finished_iterations(folder: RunDir) -> int:
    return len(read_metrics(folder.metrics)) if folder.metrics.exists() else 0


def _maml_ray(*arguments: str) -> None:
    """Run the command line; exit with its last lines if it fails."""
    print("maml-ray", *arguments, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "maml_ray", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit("\n".join(_last(done.stdout.splitlines())))


def _last(lines: Sequence[str], count: int = 20) -> Sequence[str]:
    return lines[-count:]
