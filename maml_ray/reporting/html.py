"""Write the report of a run as one self-contained HTML file."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from maml_ray.common.commands import quote_location
from maml_ray.common.safe_files import UnreadableFile, read_bytes, write_atomic
from maml_ray.config.loading import dump_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.intervals import format_interval
from maml_ray.persistence.provenance import Provenance, read_provenance
from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.progress_text import format_duration

_MAX_EMBEDDED_BYTES = 200_000_000
_SHORT_LIST = 16
"""Number of table rows up to which a table is unfolded."""


def write_report(
    run_dir: RunDir,
    settings: Settings,
    rows: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    versions: Mapping[str, str],
    plots: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.html`` to a run directory.

    Args:
        run_dir: run directory; its video is embedded if it exists.
        settings: settings of the run.
        rows: rows of ``metrics.jsonl``.
        evaluation: content of ``evaluation.json``; None if there is none.
        versions: version of each package here, shown if the run has not recorded its own.
        plots: ``svg`` elements by name, as :func:`maml_ray.reporting.svg.write_plots` returns them.

    Returns:
        Path of the report.
    """
    environment = Environment(
        loader=PackageLoader("maml_ray.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    attempts = read_provenance(run_dir)
    page = environment.get_template("report.html.j2").render(
        name=settings.run.name,
        task=settings.task.name,
        preset=settings.run.preset,
        facts=_facts(settings, rows, attempts, versions),
        differences=_differences(settings),
        settings=dump_settings(settings),
        last=dict(rows[-1]) if rows else None,
        recovered=_recovered_faults(rows),
        evaluation=evaluation,
        by_task=_rows_by_task(evaluation),
        gains=_gains(evaluation),
        with_speed=any(row["speed"] is not None for row in (evaluation or {}).get("rows", ())),
        infos=_info_names(evaluation),
        interval=format_interval,
        short_list=_SHORT_LIST,
        plots=plots or {},
        video=_data_url(run_dir.video, "video/mp4"),
        versions=attempts[-1].versions if attempts else versions,
        versions_are_of_training=bool(attempts),
        # Quoted for a shell: the page shows commands to copy.
        run_dir=quote_location(run_dir.path),
        settings_file=quote_location(run_dir.settings),
    )
    write_atomic(run_dir.report, page)
    return run_dir.report


def _facts(
    settings: Settings,
    rows: Sequence[Mapping[str, Any]],
    attempts: Sequence[Provenance],
    versions: Mapping[str, str],
) -> list[tuple[str, str]]:
    """Return what identifies a run, as pairs of label and text; what is unknown is left out."""
    facts = [("Seed", str(settings.run.seed))]
    if attempts:
        facts.append(("Started", attempts[0].started))
    if rows:
        facts.append(("Training time", format_duration(rows[-1]["elapsed_s"])))
    if len(attempts) > 1:
        facts.append(("Resumed", f"{len(attempts) - 1} times, last {attempts[-1].started}"))
    machines = dict.fromkeys(f"{each.host}: {each.machine}" for each in attempts)
    if machines:
        facts.append(("Machine", "; ".join(machines)))
    if rows and rows[-1].get("actors"):
        facts.append(("Rollout actors", str(rows[-1]["actors"])))
    commits = dict.fromkeys(each.commit for each in attempts if each.commit)
    if commits:
        facts.append(("Commit", ", ".join(commits)))
    own = attempts[-1].versions if attempts else versions
    shown = [
        f"{name} {own[name]}" for name in ("maml-ray", "python", "torch", "ray") if name in own
    ]
    return [*facts, ("Versions", ", ".join(shown))] if shown else facts


def _differences(settings: Settings) -> list[tuple[str, str, str]]:
    """Return key, value and default of each setting that differs from its default."""
    defaults = Settings()
    return [
        (key, _format(value), _format(attrgetter(key)(defaults)))
        for key, value in settings.differences().items()
    ]


def _format(value: Any) -> str:
    """Return a value as YAML on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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


def _info_names(evaluation: Mapping[str, Any] | None) -> list[str]:
    """Return the names of the infos that every row has; files of earlier versions have none."""
    keys = ("rows", "rows_by_task")
    rows = [row for key in keys for row in (evaluation or {}).get(key, ())]
    rows += [row for beside in (evaluation or {}).get("beside", {}).values() for row in beside]
    names = [list(row.get("infos", ())) for row in rows]
    return [name for name in names[0] if all(name in each for each in names)] if names else []


def _gains(evaluation: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the gains with sampled actions; files of earlier versions have none."""
    gains = (evaluation or {}).get("gains", ())
    return [gain for gain in gains if gain["actions"] == "stochastic"]


def _data_url(path: Path, mime_type: str) -> str | None:
    """Return a file as a data URL; None if it is missing, unreadable or too large."""
    try:
        content = read_bytes(path, max_bytes=_MAX_EMBEDDED_BYTES)
    except UnreadableFile:
        return None
    return f"data:{mime_type};base64,{b64encode(content).decode()}"
