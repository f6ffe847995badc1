"""The run folder: where everything that a run leaves behind has its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maml_ray.errors import RunFolderError


@dataclass(frozen=True)
class RunFolder:
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
    def report(self) -> Path:
        """The self-contained report."""
        return self.path / "report.html"


def open_run(run: str | Path) -> RunFolder:
    """An existing run folder.

    Raises:
        RunFolderError: there is none at ``run``.
    """
    folder = RunFolder(Path(run))
    if not folder.path.is_dir():
        raise RunFolderError(f"there is no run folder {run}")
    if not folder.settings.is_file():
        raise RunFolderError(f"{run} is not a run folder: it has no {folder.settings.name}")
    return folder
