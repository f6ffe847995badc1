"""The run folder: where everything that a run leaves behind has its place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from maml_ray.common.errors import RunDirError

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it for the program of a submitted job, and for no other."""


@dataclass(frozen=True)
class RunDir:
    """Paths of one run. Nothing is created by asking for a path."""

    path: Path

    @property
    def settings(self) -> Path:
        """The resolved settings, as YAML that can be trained again."""
        return self.path / "settings.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, one folder each."""
        return self.path / "checkpoints"

    @property
    def attempts(self) -> Path:
        """Folder of notes, one for each program that has carried on the run."""
        return self.path / "attempts"

    @property
    def metrics(self) -> Path:
        """One JSON object per iteration."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def plots(self) -> Path:
        """Folder of PNG plots."""
        return self.path / "plots"

    @property
    def evaluation(self) -> Path:
        """The evaluation's figures, as JSON."""
        return self.path / "evaluation.json"

    @property
    def episodes(self) -> Path:
        """The evaluation's episodes, as CSV."""
        return self.path / "evaluation.csv"

    @property
    def video(self) -> Path:
        """Evaluated episodes before and after adaptation."""
        return self.path / "evaluation.mp4"

    @property
    def adapted(self) -> Path:
        """Folder of adapted policies, one folder each."""
        return self.path / "adapted"

    @property
    def report(self) -> Path:
        """The self-contained report."""
        return self.path / "report.html"


def resolve_base_directory(directory: str, environment: Mapping[str, str], home: Path) -> Path:
    """Where run folders are made.

    A submitted job's working directory is a copy that Ray removes: there a relative directory is
    one of the node's user.

    Args:
        directory: as ``run.directory`` has it.
        environment: of the process; Ray sets a variable in a job's.
        home: of the user.
    """
    if JOB_VARIABLE in environment and not Path(directory).is_absolute():
        return home / "maml_ray" / directory
    return Path(directory)


def open_run_dir(run: str | Path) -> RunDir:
    """An existing run folder.

    Raises:
        RunDirError: there is none at ``run``, or a link in it leads out of it.
    """
    folder = RunDir(Path(run))
    # os.path and not Path: what can be no path at all is not there either, and no error.
    if not os.path.isdir(folder.path):
        raise RunDirError(f"there is no run folder {run}")
    check_inside(folder.path, *_places(folder))
    if not os.path.isfile(folder.settings):
        raise RunDirError(f"{run} is not a run folder: it has no {folder.settings.name}")
    return folder


def check_inside(folder: Path, *places: Path) -> None:
    """Nothing is read or written outside: a run folder may come from somebody else.

    Raises:
        RunDirError: one of ``places`` is a link out of ``folder``, which may be a link itself,
            or a pipe or a device.
    """
    real = os.path.realpath(folder)
    for place in places:
        target = os.path.realpath(place)
        if os.path.commonpath((real, target)) != real:
            raise RunDirError(
                f"{place} leads out of the run folder, to {target}: put what it stands for there"
            )
        if os.path.exists(target) and not (os.path.isfile(target) or os.path.isdir(target)):
            raise RunDirError(f"{place} is neither a file nor a folder: reading it may not end")


def check_writable(*places: Path) -> None:
    """Files can be replaced and folders be filled: found out before the work and not after it.

    Raises:
        RunDirError: a file is in the place of a folder, or the other way round.
    """
    for place in places:
        kind, right = ("file", os.path.isfile) if place.suffix else ("folder", os.path.isdir)
        if os.path.lexists(place) and not right(place):
            raise RunDirError(f"{place} is not a {kind}: move it out of the way")


def _places(folder: RunDir) -> Iterator[Path]:
    """Everything that a run puts into its folder, and the checkpoints' own files."""
    yield from (folder.settings, folder.metrics, folder.evaluation, folder.episodes)
    yield from (folder.report, folder.video, folder.plots, folder.tensorboard, folder.adapted)
    yield from (folder.attempts, folder.checkpoints)
    for path, folders, files in os.walk(folder.checkpoints):
        yield from (Path(path) / name for name in (*folders, *files))
