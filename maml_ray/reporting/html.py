"""The report: one HTML file that holds everything and asks for nothing from outside."""

from __future__ import annotations

import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from maml_ray.common.safe_files import UnreadableFile, read_bytes, write_atomic
from maml_ray.config.loading import dump_settings
from maml_ray.config.settings import Settings
from maml_ray.persistence.run_dir import RunDir

_EVALUATION_PLOT = "evaluation.png"
_MOST_BYTES = 200_000_000
_PLOTS = (
    ("returns.png", "Return before and after adaptation"),
    ("meta_update.png", "The meta-update"),
    ("time.png", "Where the time went"),
)


def write_report(
    folder: RunDir,
    settings: Settings,
    rows: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    versions: Mapping[str, str],
) -> Path:
    """Write ``report.html`` from what the run folder holds.

    Args:
        folder: of the run; its plots and its video are embedded where they are there.
        settings: of the run.
        rows: of ``metrics.jsonl``.
        evaluation: the content of ``evaluation.json``, if there is one.
        versions: of everything that the results depend on.

    Returns:
        The report's path.
    """
    environment = Environment(
        loader=PackageLoader("maml_ray.reporting", "."), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        name=settings.run.name,
        task=settings.task.name,
        preset=settings.run.preset,
        settings=dump_settings(settings),
        last=dict(rows[-1]) if rows else None,
        mended=_mended(rows),
        evaluation=evaluation,
        by_task=_by_task(evaluation),
        evaluation_plot=(
            _embedded(folder.plots / _EVALUATION_PLOT, "image/png") if evaluation else None
        ),
        plots=[
            (title, picture)
            for name, title in _PLOTS
            if (picture := _embedded(folder.plots / name, "image/png"))
        ],
        video=_embedded(folder.video, "video/mp4"),
        versions=versions,
        # As a shell takes them: the page offers commands to copy.
        folder=shlex.quote(str(folder.path)),
        settings_file=shlex.quote(str(folder.settings)),
    )
    write_atomic(folder.report, page)
    return folder.report


_MENDED = {
    "lost": "pieces of work lost with their actor, and done again",
    "duplicated": "pieces of work given to a second actor",
    "learner_restarts": "learners begun anew",
    "discarded_episodes": "broken episodes drawn again",
}


def _mended(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What went wrong on the way and was mended, where anything did."""
    counts = {key: sum(int(row.get(key) or 0) for row in rows) for key in ("lost", "duplicated")}
    for key in ("learner_restarts", "discarded_episodes"):  # these are told since the start
        counts[key] = int(rows[-1].get(key) or 0) if rows else 0
    told = [f"{counts[key]} {what}" for key, what in _MENDED.items() if counts[key]]
    skipped = sum(row.get("skipped") is not None for row in rows)
    return [*told, f"{skipped} updates skipped"] if skipped else told


def _by_task(evaluation: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Rows by task, where there is more than one task."""
    rows = list(evaluation["rows_by_task"]) if evaluation else []
    several = len({row["task"] for row in rows}) > 1
    return sorted(rows, key=lambda row: row["task"]) if several else []


def _embedded(path: Path, kind: str) -> str | None:
    """A picture or a video as part of the page; None where there is none that can be."""
    try:
        content = read_bytes(path, max_bytes=_MOST_BYTES)
    except UnreadableFile:
        return None
    return f"data:{kind};base64,{b64encode(content).decode()}"
