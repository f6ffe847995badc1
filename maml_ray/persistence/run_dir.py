"""Define the layout of a run directory, and check one before it is used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from maml_ray.common.errors import RunDirError

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the program of a submitted job, and for no other."""


@dataclass(frozen=True)
class RunDir:
    """Paths of one run; accessing them creates nothing. Itself usable where a path is."""

    path: Path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def settings(self) -> Path:
        """Resolved settings, as YAML that can be trained again."""
        return self.path / "settings.yaml"

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints, one directory each."""
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Path:
        """Directory of leases, one file for each process that has carried on the run."""
        return self.path / "attempts"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object per iteration."""
        return self.path / "metrics.jsonl"

    @property
    def provenance(self) -> Path:
        """Where, when and with which code the run was trained, one JSON object per attempt."""
        return self.path / "provenance.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Directory of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def plots(self) -> Path:
        """Directory of SVG plots."""
        return self.path / "plots"

    @property
    def evaluation(self) -> Path:
        """Evaluation results, as JSON."""
        return self.path / "evaluation.json"

    @property
    def episodes(self) -> Path:
        """Evaluation episodes, as CSV."""
        return self.path / "evaluation.csv"

    @property
    def video(self) -> Path:
        """Video of evaluation episodes before and after adaptation."""
        return self.path / "evaluation.mp4"

    @property
    def adapted(self) -> Path:
        """Directory of adapted policies, one directory each."""
        return self.path / "adapted"

    @property
    def served(self) -> Path:
        """Directory of policies adapted by a service, one directory each."""
        return self.path / "served"

    @property
    def report(self) -> Path:
        """Self-contained HTML report."""
        return self.path / "report.html"


def resolve_base_directory(directory: Path, environment: Mapping[str, str], home: Path) -> Path:
    """Return the directory in which run directories are created.

    The working directory of a submitted job is a copy that Ray removes, so a relative directory is
    placed in the home directory of the node's user there.

    Args:
        directory: ``run.directory`` of the settings, expanded.
        environment: environment of the process.
        home: home directory of the user.
    """
    if JOB_VARIABLE in environment and not directory.is_absolute():
        return home / "maml_ray" / directory
    return directory


def open_run_dir(path: str | PathLike[str]) -> RunDir:
    """Return an existing run directory.

    Raises:
        RunDirError: there is none at ``path``, or a link in it leads out of it.
    """
    run_dir = RunDir(Path(path))
    # os.path and not Path, which raises an error for strings that cannot be paths.
    if not os.path.isdir(run_dir.path):
        raise RunDirError(f"there is no run directory {path}")
    check_inside(run_dir.path, *_known_paths(run_dir))
    if not os.path.isfile(run_dir.settings):
        raise RunDirError(f"{path} is not a run directory: it has no {run_dir.settings.name}")
    return run_dir


def check_inside(directory: Path, *paths: Path) -> None:
    """Check that paths stay inside a directory, which may come from somebody else.

    Raises:
        RunDirError: a path is a link out of ``directory`` (which may be a link itself), a pipe or
            a device.
    """
    real = os.path.realpath(directory)
    for path in paths:
        target = os.path.realpath(path)
        if os.path.commonpath((real, target)) != real:
            raise RunDirError(
                f"{path} leads out of {directory}, to {target}: replace the link by its target"
            )
        if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
            raise RunDirError(f"{path} is neither a file nor a directory: reading it may not end")


def check_writable(*paths: Path) -> None:
    """Check, before a long computation, that outputs can replace what is at their paths.

    Raises:
        RunDirError: a file is where a directory is needed, or the reverse. A path with a suffix is
            that of a file.
    """
    for path in paths:
        kind, is_kind = ("file", os.path.isfile) if path.suffix else ("directory", os.path.isdir)
        if os.path.lexists(path) and not is_kind(path):
            raise RunDirError(f"{path} is not a {kind}: move it out of the way")


def _known_paths(run_dir: RunDir) -> Iterator[Path]:
    """Yield the paths that a run writes, and those of all files of its checkpoints."""
    yield from (run_dir.settings, run_dir.metrics, run_dir.evaluation, run_dir.episodes)
    yield from (run_dir.report, run_dir.video, run_dir.plots, run_dir.tensorboard, run_dir.adapted)
    yield from (run_dir.provenance, run_dir.attempts, run_dir.checkpoints, run_dir.served)
    for parent, directories, files in os.walk(run_dir.checkpoints):
        yield from (Path(parent) / name for name in (*directories, *files))
