"""Load a trained policy from a run directory or from the folder of a saved policy."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from maml_ray.common.locations import parse_path
from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.compatibility import check_matches_settings, check_matches_task
from maml_ray.evaluation.saved_policy import DESCRIPTION, load_policy
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import load_named_checkpoint
from maml_ray.persistence.run_dir import open_run_dir
from maml_ray.persistence.run_storage import open_run_storage
from maml_ray.tasks.loading import OwnTasks, record_own_tasks


def load(
    folder: str | PathLike[str], *, checkpoint: str | int = "newest", tasks: OwnTasks | None = None
) -> Agent:
    """Load the meta-trained policy of a run, or a saved policy.

    Args:
        folder: a run directory, or a folder written by ``maml-ray adapt`` or :meth:`Agent.save`.
        checkpoint: for a run directory: ``"newest"`` (the newest readable one), ``"best"`` (by
            return after adaptation during training), or a number of iterations.
        tasks: a :class:`TaskDistribution` class or instance to use in place of the tasks that
            the settings name. A run whose tasks were given to :func:`train` in Python records
            only their name: without them its policy can act, but not collect or be evaluated.
            A run whose family was named by its module needs them, too, unless your program has
            imported that module: the record of a run alone imports none.

    Issues a :class:`RunWarning` for a damaged checkpoint that is skipped.

    Raises:
        RunDirError: the folder is neither, or holds no readable policy that fits its settings
            and ``tasks``.
        SettingsError: the settings cannot be read, or ``tasks`` cannot be used.
    """
    folder = parse_path(folder, "folder")
    if is_policy_folder(folder):
        agent = load_policy(folder)
    else:
        agent = load_run(folder, str(checkpoint)).agent
    if tasks is None:
        return agent
    agent = replace(agent, settings=record_own_tasks(agent.settings, tasks), own_tasks=tasks)
    check_matches_task(agent, folder)
    return agent


def is_policy_folder(folder: Path) -> bool:
    """Return whether ``folder`` holds a saved policy, be it damaged, and not a run."""
    return os.path.lexists(folder / DESCRIPTION)


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """The meta-trained policy of a run.

    Attributes:
        agent: the policy.
        iteration: number of iterations it was trained for.
        warnings: sentences on newer checkpoints that are damaged and were passed over.
    """

    agent: Agent
    iteration: int
    warnings: tuple[str, ...]


def load_run(folder: str | PathLike[str], checkpoint: str = "newest") -> LoadedRun:
    """Load the meta-trained policy of a run, and warnings about its checkpoints.

    Raises:
        RunDirError: as :func:`load`.
        SettingsError: as :func:`load`.
    """
    run = open_run_dir(folder)
    settings = load_settings(run.settings, recorded=True)
    loaded, warnings = load_named_checkpoint(open_run_storage(run, settings.run), checkpoint)
    agent = agent_from_checkpoint(settings, loaded, run.checkpoints)
    return LoadedRun(agent, loaded.iteration, tuple(warnings))


def agent_from_checkpoint(settings: Settings, checkpoint: Checkpoint, source: Path) -> Agent:
    """Return the policy of a checkpoint.

    Args:
        settings: settings of the run.
        checkpoint: checkpoint as loaded.
        source: path it was loaded from, for the error message.

    Raises:
        RunDirError: the policy does not fit the settings.
    """
    state = checkpoint.learner
    normalize = settings.policy.normalize_observations
    agent = Agent(
        settings=settings,
        spec=checkpoint.spec,
        parameters=dict(state.parameters),
        normalizer=state.obs_stats.normalizer() if normalize else None,
    )
    check_matches_settings(agent, source)
    return agent
