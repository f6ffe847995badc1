"""Check that a run can start or resume, before Ray starts, and load what it resumes from."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace

from rich.console import Console

from maml_ray.common.commands import quote_location
from maml_ray.common.errors import RunDirError, error_reason
from maml_ray.config.loading import load_settings
from maml_ray.config.sections import RunSettings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.evaluation.compatibility import check_matches_task
from maml_ray.evaluation.loading import agent_from_checkpoint
from maml_ray.maml.losses import outer_objective
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import has_checkpoints, load_newest_of
from maml_ray.persistence.metrics_file import read_metrics
from maml_ray.persistence.run_dir import RunDir, check_writable
from maml_ray.persistence.run_storage import (
    checkpoint_storages,
    fetch_metrics,
    is_run_dir,
    open_run_storage,
    read_settings,
    storage_location,
)
from maml_ray.persistence.storage import Storage, open_storage
from maml_ray.tasks.loading import OwnTasks

MUTABLE_ON_RESUME = (
    "run.iterations",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.directory",
    "run.storage",
)
"""Settings that may change on resume, in addition to ``cluster``, ``faults`` and ``evaluation``."""


def check_no_existing_run(run_dir: RunDir, settings: Settings) -> None:
    """Reject a new run whose directory or storage already holds one.

    Raises:
        RunDirError: there is a run, or the storage cannot be read.
    """
    if os.path.lexists(run_dir.settings):
        raise RunDirError(
            f"{run_dir.path} already holds a run: resume it with --resume "
            f"{quote_location(run_dir.path)}, "
            "or name another directory"
        )
    absolute = run_dir.path.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not os.path.isdir(existing):
        raise RunDirError(
            f"cannot write to the run directory {run_dir.path}: {existing} is not a directory; "
            "name another with --run-dir or run.directory"
        )
    storage = open_run_storage(run_dir, settings.run)
    if not is_run_dir(storage, run_dir) and read_settings(storage) is not None:
        raise RunDirError(
            f"{storage} already holds a run: resume it with --resume "
            f"{quote_location(str(storage))}, or name another directory"
        )
    if has_checkpoints(storage):
        raise RunDirError(
            f"{storage} holds checkpoints of another run, without its settings: move them away, "
            "or name another directory"
        )


def check_storage_writable(run: RunSettings) -> None:
    """Write and remove a marker file in the run's storage, if one is set.

    Raises:
        RunDirError: either fails.
    """
    location = storage_location(run)
    if location is None:
        return
    storage, marker = open_storage(location), f".start-{secrets.token_hex(4)}"
    try:
        storage.write(marker, b"")
        storage.remove(marker)
    except OSError as error:
        raise RunDirError(
            f"cannot write to run.storage = {location} ({error_reason(error)}): fix it, or "
            "set run.storage to a writable location"
        ) from None


def load_resume_state(
    run_dir: RunDir, settings: Settings, console: Console, own_tasks: OwnTasks | None = None
) -> Checkpoint | None:
    """Load the checkpoint to resume from and fetch the metrics up to it.

    Issues a :class:`RunWarning` for what is damaged and skipped.

    Returns:
        The newest checkpoint; None if the run ended before its first one.

    Raises:
        SettingsError: the settings differ from the run's.
        RunDirError: the directory or storage cannot be used or belongs to another run, or the run
            has lost its checkpoints.
    """
    _check_resumable(load_settings(run_dir.settings, recorded=True), settings)
    check_writable(run_dir.checkpoints, run_dir.tensorboard, run_dir.plots, run_dir.attempts)
    check_writable(run_dir.metrics, run_dir.evaluation, run_dir.episodes, run_dir.report)
    if os.path.lexists(run_dir.metrics):
        read_metrics(run_dir.metrics)  # report metrics that cannot be read before Ray starts
    storages = checkpoint_storages(run_dir, settings.run)
    _check_same_run(run_dir, storages[0], settings)
    storage, checkpoint = load_newest_of(storages)
    if checkpoint is None:
        check_never_saved(run_dir, storages[-1])
        print_notice(console, f"{storage} has no checkpoint yet: the run starts from the beginning")
        return None
    agent = agent_from_checkpoint(settings, checkpoint, run_dir.checkpoints)
    check_matches_task(replace(agent, own_tasks=own_tasks), run_dir.path)
    for storage in storages:
        fetch_metrics(storage, run_dir, checkpoint.iteration)
    return checkpoint


def keep_annealing(run_dir: RunDir, settings: Settings, console: Console) -> Settings:
    """Return ``settings`` whose outer rate is annealed as when the run started.

    A line says so if the number of iterations changes: a longer run would otherwise continue at a
    higher rate than it had.
    """
    recorded = load_settings(run_dir.settings, recorded=True)
    length, outer = recorded.annealed_over, settings.outer
    if outer.anneal_iterations is None and settings.run.iterations != length:
        kept = outer.model_copy(update={"anneal_iterations": length})
        settings = settings.model_copy(update={"outer": kept})
    changed = settings.run.iterations != recorded.run.iterations
    final = outer.final_learning_rate
    if changed and final is not None and not outer_objective(outer.objective).uses_trust_region:
        print_notice(
            console,
            f"outer.learning_rate is annealed over {length} iterations, as when the run started, "
            f"and stays at {final:g} after them",
        )
    return settings


def _check_same_run(run_dir: RunDir, storage: Storage, settings: Settings) -> None:
    """Reject a storage that holds another run."""
    stored = None if is_run_dir(storage, run_dir) else read_settings(storage)
    if stored is None:
        return
    try:
        _check_resumable(stored, settings)
    except SettingsError as error:
        raise RunDirError(
            f"{storage} holds another run than {run_dir.path} ({error}): name another run.storage"
        ) from None


def check_never_saved(run_dir: RunDir, storage: Storage) -> None:
    """Reject a run without checkpoints that has had some: starting over would lose the rest of it.

    Raises:
        RunDirError: it has, or its storage may not be mounted.
    """
    rows = read_metrics(run_dir.metrics) if os.path.lexists(run_dir.metrics) else []
    if rows and not is_run_dir(storage, run_dir) and read_settings(storage) is None:
        raise RunDirError(
            f"{storage} is empty, but the run in {run_dir.path} has finished iterations: check "
            "that the storage is mounted, or start a new run in another directory"
        )
    saved = any(row.get("checkpoint_age_s") is not None for row in rows)
    if saved or os.path.lexists(run_dir.evaluation):
        raise RunDirError(
            f"{storage} has lost its checkpoints: the run in {run_dir.path} has finished "
            f"{len(rows)} iterations and had saved some; put them back, or start a new run in "
            "another directory"
        )


def _check_resumable(recorded: Settings, requested: Settings) -> None:
    """Reject a change of settings that would change what the run computes."""
    for section in type(recorded).model_fields:
        if section in ("cluster", "faults", "evaluation"):
            continue
        before, after = getattr(recorded, section), getattr(requested, section)
        for key in type(before).model_fields:
            name, old, new = f"{section}.{key}", getattr(before, key), getattr(after, key)
            if name == "outer.anneal_iterations":
                old, new = recorded.annealed_over, requested.annealed_over
            if old != new and name not in MUTABLE_ON_RESUME:
                raise SettingsError(
                    f"{name} = {new!r}, but the run to resume has {old!r}: a resumed run keeps "
                    "its settings; start a new run to change them"
                )


def print_notice(console: Console, line: str) -> None:
    """Print a line that the user should notice."""
    console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)
