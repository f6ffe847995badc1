"""Train and evaluate a run once: finished work is kept, interrupted work is resumed."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maml_ray.config.loading import dump_settings, load_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.results_file import read_evaluation, write_evaluation
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir
from tests.reproduction.experiments import Experiment

TASKS, EPISODES = 40, 20
"""The protocol of Finn et al. 2017, figure 5, whose policies take up to 3 gradient steps."""
FEW_EPISODES = 2
"""Episodes that PEARL adapts to (Rakelly et al. 2019, section 6)."""
_INTERRUPTED = (130, 143)
"""Exit codes after SIGINT and SIGTERM."""
_SHOWN_LINES = 20
_COMPARED_OF_RUN = ("seed", "iterations")
"""Keys of the section ``run`` that change what is learned."""


class CommandFailed(Exception):
    """A run could not be trained or evaluated; the message has the last lines of its output."""


def run_folder(base: Path, experiment: Experiment, seed: int) -> RunDir:
    """Return the run directory of an experiment and seed."""
    return RunDir(base / f"{experiment.name}-seed{seed}")


def few_episodes_file(folder: RunDir) -> Path:
    """Return the path of the evaluation that adapts to :data:`FEW_EPISODES` episodes."""
    return folder.path / "evaluation-few-episodes.json"


def complete(base: Path, experiment: Experiment, seed: int) -> None:
    """Do what a run lacks, and print what it does not; all of it is kept for the next command.

    Raises:
        SettingsError: the experiment's preset or a setting does not exist.
        CommandFailed: training or an evaluation failed.
    """
    folder, settings = run_folder(base, experiment, seed), experiment.settings(seed)
    if is_trained(folder):
        print(f"{folder} is trained: skipped", flush=True)
        note = describe_other_settings(folder, settings)
        if note is not None:
            print(f"note: {note}", flush=True)
    else:
        _train(folder, settings)
    if is_evaluated(folder, experiment.steps):
        print(f"{folder} is evaluated: skipped", flush=True)
    else:
        _evaluate(folder, experiment.steps)


def describe_missing(folder: RunDir, steps: int) -> str | None:
    """Return what a run lacks for the table; None if it is finished."""
    if not is_trained(folder):
        if not folder.settings.exists():
            return "not trained"
        iterations = load_settings(folder.settings, recorded=True).run.iterations
        return f"trained for {_finished_iterations(folder)} of {iterations} iterations"
    return None if is_evaluated(folder, steps) else "not evaluated"


def describe_other_settings(folder: RunDir, listed: Settings) -> str | None:
    """Return a sentence if a run was not trained with the settings in the list of experiments."""
    recorded = load_settings(folder.settings, recorded=True)
    before, now = (
        each.model_dump(mode="json", exclude={"cluster", "evaluation"})
        for each in (recorded, listed)
    )
    names = [
        f"{section}.{key}"
        for section, values in now.items()
        for key, value in values.items()
        if before[section][key] != value and (section != "run" or key in _COMPARED_OF_RUN)
    ]
    if not names:
        return None
    return (
        f"{folder} was trained with other settings than those listed ({', '.join(names)}): "
        "remove it to train it again"
    )


def is_trained(folder: RunDir) -> bool:
    """Return whether a run has finished all its iterations and saved them."""
    if not folder.settings.exists() or not folder.evaluation.exists():
        return False  # the evaluation follows the last checkpoint
    settings = load_settings(folder.settings, recorded=True)
    return _finished_iterations(folder) >= settings.run.iterations


def is_evaluated(folder: RunDir, steps: int) -> bool:
    """Return whether a run has both evaluations, of the protocol and with few episodes."""
    full = _read_evaluation(folder.evaluation)
    return full is not None and _has_protocol(full, steps) and few_episodes_file(folder).exists()


def evaluation_command(steps: int, run: str = "RUN") -> str:
    """Return the command that evaluates a run by the protocol."""
    return f"maml-ray evaluate {run} --steps {steps} --tasks {TASKS} --episodes {EPISODES}"


def few_episodes_command(run: str = "RUN") -> str:
    """Return the command that evaluates a run after one step on :data:`FEW_EPISODES` episodes."""
    return f"{evaluation_command(1, run)} --adaptation-episodes {FEW_EPISODES}"


def _train(folder: RunDir, settings: Settings) -> None:
    if folder.settings.exists():
        _maml_ray(folder, "train", "--resume", str(folder))
        return
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    file = folder.path.parent / f"{folder.path.name}.yaml"
    file.write_text(dump_settings(settings), encoding="utf-8")
    _maml_ray(folder, "train", str(file), "--run-dir", str(folder))


def _evaluate(folder: RunDir, steps: int) -> None:
    """Evaluate after 0 to ``steps`` gradient steps, and after one step on few episodes."""
    few = few_episodes_file(folder)
    full = _read_evaluation(folder.evaluation)
    if full is None or not _has_protocol(full, steps):
        protocol = evaluation_command(steps).split()[3:]
        _maml_ray(folder, "evaluate", str(folder), *protocol, "--no-record")
    if not few.exists():
        _evaluate_few(folder, few)


def _evaluate_few(folder: RunDir, path: Path) -> None:
    """Write the evaluation of :func:`few_episodes_command` to a file of its own."""
    from maml_ray.evaluation.evaluate import evaluate  # PyTorch takes seconds to import
    from maml_ray.evaluation.loading import load

    print(few_episodes_command(str(folder)), flush=True)
    agent = load(folder.path)
    evaluation = evaluate(
        agent, tasks=TASKS, episodes=EPISODES, steps=1, adaptation_episodes=FEW_EPISODES
    )
    write_evaluation(evaluation, agent.settings, {}, path, path.with_suffix(".csv"))


def _has_protocol(results: Mapping[str, Any], steps: int) -> bool:
    taken = max(row["steps"] for row in results["rows"])
    return (results["tasks"], results["episodes"]) == (TASKS, EPISODES) and taken >= steps


def _read_evaluation(path: Path) -> Mapping[str, Any] | None:
    return read_evaluation(path) if path.exists() else None


def _finished_iterations(folder: RunDir) -> int:
    rows = read_metrics(folder.metrics) if folder.metrics.exists() else []
    return int(rows[-1]["iteration"]) + 1 if rows else 0


def _maml_ray(folder: RunDir, *arguments: str) -> None:
    """Run the command line, with its output in a log file next to the run directory.

    Raises:
        CommandFailed: it failed.
        SystemExit: it was interrupted by a signal.
    """
    log = folder.path.parent / f"{folder.path.name}.log"
    print("maml-ray", shlex.join(arguments), f"(output: {log})", flush=True)
    command = [sys.executable, "-m", "maml_ray", *arguments]
    with log.open("ab") as output:
        start = output.tell()
        code = _wait(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
    if code in _INTERRUPTED:
        raise SystemExit(code)
    if code != 0:
        lines = log.read_bytes()[start:].decode(errors="replace").splitlines()
        raise CommandFailed("\n".join([f"{log}:", *lines[-_SHOWN_LINES:]]))


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a process; if a signal ends this one, let that one save its checkpoint first."""
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal has sent the signal to both
        process.wait()
        raise
    except SystemExit:
        process.terminate()
        process.wait()
        raise
