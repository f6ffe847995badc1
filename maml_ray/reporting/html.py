"""Write the report of a run as one self-contained HTML file."""

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
_MAX_EMBEDDED_BYTES = 200_000_000
_PLOTS = (
    ("returns.png", "Return before and after adaptation"),
    ("meta_update.png", "The meta-update"),
    ("time.png", "Where the time went"),
)


def write_report(
    run_dir: RunDir,
    settings: Settings,
    rows: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    versions: Mapping[str, str],
) -> Path:
    """Write ``report.html`` to a run directory.

    Args:
        run_dir: run directory; its plots and its video are embedded if they exist.
        settings: settings of the run.
        rows: rows of ``metrics.jsonl``.
        evaluation: content of ``evaluation.json``; None if there is none.
        versions: version of each package that the results depend on.

    Returns:
        Path of the report.
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
        recovered=_recovered_faults(rows),
        evaluation=evaluation,
        by_task=_rows_by_task(evaluation),
        evaluation_plot=(
            _data_url(run_dir.plots / _EVALUATION_PLOT, "image/png") if evaluation else None
        ),
        plots=[
            (title, image)
            for name, title in _PLOTS
            if (image := _data_url(run_dir.plots / name, "image/png"))
        ],
        video=_data_url(run_dir.video, "video/mp4"),
        versions=versions,
        # Quoted for a shell: the page shows commands to copy.
        run_dir=shlex.quote(str(run_dir.path)),
        settings_file=shlex.quote(str(run_dir.settings)),
    )
    write_atomic(run_dir.report, page)
    return run_dir.report


_RECOVERED = {
    "lost": "rollouts lost and repeated",
    "duplicated": "slow rollouts duplicated on a second actor",
    "learner_restarts": "learner restarts",
    "discarded_episodes": "failed episodes collected again",
}


def _recovered_faults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a phrase for each kind of fault that the run recovered from."""
    counts = {key: sum(int(row.get(key) or 0) for row in rows) for key in ("lost", "duplicated")}
    for key in ("learner_restarts", "discarded_episodes"):  # these two are cumulative
        counts[key] = int(rows[-1].get(key) or 0) if rows else 0
    phrases = [f"{counts[key]} {phrase}" for key, phrase in _RECOVERED.items() if counts[key]]
    skipped = sum(row.get("skipped") is not None for row in rows)
    return [*phrases, f"{skipped} updates skipped"] if skipped else phrases


def _rows_by_task(evaluation: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return rows sorted by task; none if there is only one task."""
    rows = list(evaluation["rows_by_task"]) if evaluation else []
    several = len({row["task"] for row in rows}) > 1
    return sorted(rows, key=lambda row: row["task"]) if several else []


def _data_url(path: Path, mime_type: str) -> str | None:
    """Return a file as a data URL; None if it is missing, unreadable or too large."""
    try:
        content = read_bytes(path, max_bytes=_MAX_EMBEDDED_BYTES)
    except UnreadableFile:
        return None
    return f"data:{mime_type};base64,{b64encode(content).decode()}"
