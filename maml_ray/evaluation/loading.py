"""A trained policy from where it was left: a run folder, or a folder that holds only a policy."""

from __future__ import annotations

import os
from pathlib import Path

from maml_ray.config.loading import load_settings
from maml_ray.config.settings import Settings
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.compatibility import check_matches_settings
from maml_ray.evaluation.policy_export import DESCRIPTION, load_policy
from maml_ray.persistence.checkpoint_format import Checkpoint
from maml_ray.persistence.checkpoint_store import load_named_checkpoint
from maml_ray.persistence.run_dir import open_run_dir
from maml_ray.persistence.run_storage import open_run_storage


def load(folder: str | Path, *, checkpoint: str = "newest") -> Agent:
    """The meta-trained policy of a run, from its newest readable checkpoint; or an adapted one.

    Args:
        folder: a run folder, or what ``maml-ray adapt`` has written.
        checkpoint: of a run: ``"newest"``, ``"best"`` (by return after adaptation, while it was
            trained), or a number of iterations.

    Raises:
        RunDirError: it is neither, or holds nothing that can be read and fits its settings.
        SettingsError: its settings cannot be read.
    """
    if os.path.lexists(Path(folder) / DESCRIPTION):
        return load_policy(Path(folder))
    return load_with_iteration(folder, checkpoint)[0]


def load_with_iteration(folder: str | Path, checkpoint: str = "newest") -> tuple[Agent, int]:
    """The meta-trained policy of a run, and the number of iterations that it was trained for.

    Raises:
        RunDirError: as :func:`load`.
        SettingsError: as :func:`load`.
    """
    run = open_run_dir(folder)
    settings = load_settings(run.settings)
    found, _ = load_named_checkpoint(open_run_storage(run, settings), checkpoint)
    return agent_from_checkpoint(settings, found, run.checkpoints), found.iteration


def agent_from_checkpoint(settings: Settings, checkpoint: Checkpoint, place: Path) -> Agent:
    """The policy of a checkpoint.

    Args:
        settings: of its run.
        checkpoint: as it was read.
        place: where from, for the sentence.

    Raises:
        RunDirError: it does not fit the settings.
    """
    state = checkpoint.learner
    normalize = settings.policy.normalize_observations
    agent = Agent(
        settings=settings,
        spec=checkpoint.spec,
        parameters=dict(state.parameters),
        normalizer=state.observations.normalizer() if normalize else None,
    )
    check_matches_settings(agent, place)
    return agent
