"""A trained policy from where it was left: a run folder, or a folder that holds only a policy."""

from __future__ import annotations

import os
from pathlib import Path

from maml_ray.agent import Agent
from maml_ray.checkpoint import load_newest
from maml_ray.config import load_settings
from maml_ray.fitting import check_fits
from maml_ray.policy_folder import DESCRIPTION, load_policy
from maml_ray.run_folder import open_run


def load(folder: str | Path) -> Agent:
    """The meta-trained policy of a run, from its newest readable checkpoint; or an adapted one.

    Args:
        folder: a run folder, or what ``maml-ray adapt`` has written.

    Raises:
        RunFolderError: it is neither, or holds nothing that can be read and fits its settings.
        SettingsError: its settings cannot be read.
    """
    if os.path.lexists(Path(folder) / DESCRIPTION):
        return load_policy(Path(folder))
    run = open_run(folder)
    checkpoint, _ = load_newest(run.checkpoints)
    settings, state = load_settings(run.settings), checkpoint.learner
    normalise = settings.policy.normalise_observations
    agent = Agent(
        settings=settings,
        spec=checkpoint.spec,
        parameters=dict(state.parameters),
        normaliser=state.observations.normaliser() if normalise else None,
    )
    check_fits(agent, run.checkpoints)
    return agent
