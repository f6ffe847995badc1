"""Load a trained policy from a run directory or from the folder of a saved policy."""

from __future__ import annotations

import os
from dataclasses import replace
from os import PathLike
from pathlib import Path

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

    Raises:
        RunDirError: the folder is neither, or holds no readable policy that fits its settings
            and ``tasks``.
        SettingsError: the settings cannot be read, or ``tasks`` cannot be used.
    """
    if os.path.lexists(Path(folder) / DESCRIPTION):
        agent = load_policy(Path(folder))
    else:
        agent, _ = load_with_iteration(folder, str(checkpoint))
    if tasks is None:
        return agent
    agent = replace(agent, settings=record_own_tasks(agent.settings, tasks), own_tasks=tasks)
    check_matches_task(agent, folder)
    return agent


def load_with_iteration(
    folder: str | PathLike[str], checkpoint: str = "newest"
) -> tuple[Agent, int]:
    """Load the meta-trained policy of a run and the number of iterations it was trained for.

    Raises:
        RunDirError: as :func:`load`.
        SettingsError: as :func:`load`.
    """
    run = open_run_dir(folder)
    settings = load_settings(run.settings, recorded=True)
    loaded, _ = load_named_checkpoint(open_run_storage(run, settings.run), checkpoint)
    return agent_from_checkpoint(settings, loaded, run.checkpoints), loaded.iteration


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
