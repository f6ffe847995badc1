"""Policies that are served: the run's own, by its checkpoint, and those adapted from it."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from maml_ray.common.errors import UserError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.loading import load, load_checkpointed
from maml_ray.evaluation.policy_export import DESCRIPTION, PARAMETERS, policy_files
from maml_ray.persistence.run_storage import fetch_run
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.tasks.task import Task

BASE = "base"
"""The name of the policy that adaptations begin from, whichever checkpoint it is."""


@dataclass(frozen=True, eq=False)
class ServedPolicy:
    """A policy and the name that callers know it by.

    Attributes:
        name: ``checkpoint-120`` or ``adapted-...``; never given twice to different parameters.
        agent: the policy.
        task: what it was adapted to, where that was one of the run's own tasks.
    """

    name: str
    agent: Agent
    task: Task | None = None

    @cached_property
    def policy(self) -> NumpyPolicy:
        """For acting; of one thread."""
        return self.agent.policy

    @property
    def example_task(self) -> dict[str, float] | None:
        """Parameters of a task of its run; None where the family is not installed here."""
        try:
            return dict(self.agent.sample_tasks(1)[0].parameters)
        except UserError:
            return None

    @property
    def parameters(self) -> bytes:
        """``parameters.safetensors`` of a policy's folder."""
        return policy_files(self.agent, self.task)[PARAMETERS]

    @property
    def description(self) -> bytes:
        """``policy.json`` of a policy's folder."""
        return policy_files(self.agent, self.task)[DESCRIPTION]


def adapted_name() -> str:
    """A name for an adapted policy, which nobody guesses."""
    return f"adapted-{secrets.token_hex(8)}"


def load_base(run: str, checkpoint: str = "newest") -> ServedPolicy:
    """The policy of a run folder, of a run's URL in storage, or of a folder of ``maml-ray adapt``.

    Raises:
        UserError: it is none of these, or has no such checkpoint.
    """
    if "://" in run:
        with tempfile.TemporaryDirectory() as aside:
            return _of_run(fetch_run(run, Path(aside)).path, checkpoint)
    if (Path(run) / DESCRIPTION).exists():
        agent = load(run)
        digest = hashlib.sha256(policy_files(agent)[PARAMETERS]).hexdigest()
        return ServedPolicy(f"policy-{digest[:16]}", agent)
    return _of_run(Path(run), checkpoint)


def _of_run(folder: Path, checkpoint: str) -> ServedPolicy:
    agent, iteration = load_checkpointed(folder, checkpoint)
    return ServedPolicy(f"checkpoint-{iteration}", agent)
