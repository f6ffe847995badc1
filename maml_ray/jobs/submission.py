"""Turn a run into a job: its command, id, metadata and settings. Does not import Ray."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Mapping

from maml_ray.common.locations import is_url
from maml_ray.common.versions import own_version
from maml_ray.config.loading import dump_settings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.persistence.run_dir import JOB_VARIABLE
from maml_ray.persistence.storage import open_storage
from maml_ray.tasks.registry import TASK_FAMILIES


def is_in_job() -> bool:
    """Return whether this process is a job's command, for which Ray sets a variable."""
    return JOB_VARIABLE in os.environ


def new_job_id(settings: Settings, kind: str = "") -> str:
    """Return a unique id that starts with ``kind`` and the run's name."""
    return f"{kind}{settings.run.name}-{secrets.token_hex(4)}"


def metadata(settings: Settings) -> Mapping[str, str]:
    """Return what the dashboard and ``ray job list`` show of a run."""
    return {
        "run": settings.run.name,
        "task": settings.task.name,
        "version": own_version(),
    }


def job_settings(settings: Settings) -> str:
    """Return the job's settings file; the job joins the cluster that it runs on."""
    cluster = settings.cluster.model_copy(update={"address": None})
    return dump_settings(settings.model_copy(update={"cluster": cluster}))


def entrypoint(command: str, *arguments: str) -> str:
    """Return a maml-ray command for a shell whose working directory contains the package."""
    return shlex.join(["python", "-m", "maml_ray", command, *arguments])


def train_command(settings: Settings, file: str, *, resume: bool) -> str:
    """Return the command that starts a run, or with ``resume`` continues one of its name."""
    if resume:
        return entrypoint("train", file, "--resume", "auto")
    return entrypoint("train", file, "--run-dir", f"{settings.run.directory}/{settings.run.name}")


def check_storage_url(settings: Settings) -> None:
    """Reject an invalid ``run.storage`` without connecting to it.

    Raises:
        StorageError: its protocol is unknown, or its package is not installed.
    """
    if settings.run.storage is not None and is_url(settings.run.storage):
        open_storage(settings.run.storage)  # a path is expanded on the cluster


def check_survives_job(settings: Settings) -> None:
    """Reject a run directory inside the job's working directory, which Ray removes.

    Raises:
        SettingsError: the run would be lost.
    """
    run = settings.run
    absolute = run.directory.startswith(("/", "~", "$"))  # expanded on the cluster
    if run.storage is None and not absolute:
        raise SettingsError(
            f"run.directory = {run.directory!r} is in the job's working directory, which Ray "
            "removes after the job: set run.directory to a folder that all nodes share "
            "(--set run.directory=/mnt/runs), or run.storage to a URL"
        )


def check_task_uploaded(settings: Settings, with_folder: bool) -> None:
    """Reject tasks or an environment of the user's own whose module is not uploaded.

    Raises:
        SettingsError: there is no working directory to upload.
    """
    name, env = settings.task.name, settings.task.env
    installed = name in TASK_FAMILIES or name.startswith("maml_ray.")
    if installed or (env is not None and ":" not in env) or with_folder:
        return
    raise SettingsError(
        f"task.{'name' if env is None else 'env'} = {name!r:.80} is in a module of your own, which "
        "the job needs: set --working-dir to the folder from which it is imported"
    )
