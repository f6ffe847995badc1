"""A run as a job: what is sent, and the command that is run over there. Nothing here needs Ray."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Mapping

from maml_ray.common.versions import own_version
from maml_ray.config.loading import dump_settings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.persistence.run_dir import JOB_VARIABLE
from maml_ray.persistence.storage import open_storage
from maml_ray.tasks.registry import BUILT_IN


def in_job() -> bool:
    """Whether this program is a job's command: Ray sets a variable for those."""
    return JOB_VARIABLE in os.environ


def job_id(settings: Settings, kind: str = "") -> str:
    """An id that tells the run's name in the dashboard, and comes once."""
    return f"{kind}{settings.run.name}-{secrets.token_hex(4)}"


def metadata(settings: Settings) -> Mapping[str, str]:
    """What the dashboard and ``ray job list`` show of a run."""
    return {
        "run": settings.run.name,
        "task": settings.task.name,
        "version": own_version(),
    }


def job_settings(settings: Settings) -> str:
    """The settings as the job reads them: it joins the cluster that it runs on."""
    cluster = settings.cluster.model_copy(update={"address": None})
    return dump_settings(settings.model_copy(update={"cluster": cluster}))


def entrypoint(command: str, *arguments: str) -> str:
    """A command of ours, for a shell whose working directory holds the package."""
    return shlex.join(["python", "-m", "maml_ray", command, *arguments])


def train_command(settings: Settings, file: str, *, resume: bool) -> str:
    """The command of a run that is known by its name: begun where none is, or gone on with."""
    if resume:
        return entrypoint("train", file, "--resume", "auto")
    return entrypoint("train", file, "--run-dir", f"{settings.run.directory}/{settings.run.name}")


def check_storage(settings: Settings) -> None:
    """Refuse a ``run.storage`` at which there can be none; nothing is asked of it.

    Raises:
        StorageError: of an unknown kind, or its package is not installed.
    """
    if settings.run.storage is not None:
        open_storage(settings.run.storage)


def check_lasting(settings: Settings) -> None:
    """A job's working directory is a copy that Ray removes: a run must be kept elsewhere.

    Raises:
        SettingsError: it would be lost.
    """
    run = settings.run
    if run.storage is None and not os.path.isabs(run.directory):
        raise SettingsError(
            f"run.directory = {run.directory!r} lies in the job's working directory, which Ray "
            "removes after it: set run.directory to a folder that all nodes share "
            "(--set run.directory=/mnt/runs), or run.storage to a URL"
        )


def check_task_goes_along(settings: Settings, with_folder: bool) -> None:
    """A family of one's own is in a module that the job needs too.

    Raises:
        SettingsError: nothing that is sent holds it.
    """
    name = settings.task.name
    if name in BUILT_IN or name.startswith("maml_ray.") or with_folder:
        return
    raise SettingsError(
        f"task.name = {name!r:.80} is a module of your own, which the job needs: give "
        "--working-dir FOLDER, the one that it is imported from"
    )
