"""Load the policy that a service starts from, and name those adapted from it."""

from __future__ import annotations

import hashlib
import re
import secrets
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from maml_ray.common.errors import UserError
from maml_ray.common.locations import parse_location
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.loading import is_policy_folder, load, load_run
from maml_ray.evaluation.saved_policy import DESCRIPTION, PARAMETERS, serialize_policy
from maml_ray.persistence.run_storage import fetch_run
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.tasks.task import Task

_ADAPTED = re.compile(r"adapted-([0-9a-f]{12})[0-9a-f]{32}")
"""Milliseconds of Unix time, and 128 random bits."""
_SECRET = re.compile(r"(?<=adapted-[0-9a-f]{12})[0-9a-f]+")


@dataclass(frozen=True, eq=False)
class ServedPolicy:
    """A policy and its name in the API.

    Attributes:
        name: ``checkpoint-120`` or ``adapted-...``; never reused for other parameters.
        agent: the policy with its settings.
        task: the task it was adapted to, if that is one of the run's family.
        num_passed_over: newer checkpoints of the run that are damaged or incomplete.
    """

    name: str
    agent: Agent
    task: Task | None = None
    num_passed_over: int = 0

    @cached_property
    def numpy_policy(self) -> NumpyPolicy:
        """The policy for acting, in one thread."""
        return self.agent.policy

    @property
    def example_task(self) -> dict[str, float] | None:
        """Parameters of one task of the run; None if the task family is not installed here."""
        try:
            return dict(self.agent.sample_tasks(1)[0].parameters)
        except UserError:
            return None

    @property
    def parameters_file(self) -> bytes:
        """Content of ``parameters.safetensors`` in an exported policy."""
        return serialize_policy(self.agent, self.task)[PARAMETERS]

    @property
    def description_file(self) -> bytes:
        """Content of ``policy.json`` in an exported policy."""
        return serialize_policy(self.agent, self.task)[DESCRIPTION]


def new_policy_name() -> str:
    """Return a name for an adapted policy, which other callers cannot guess.

    It begins with the time, so that any process can tell the age of a policy from its name.
    """
    return f"adapted-{round(1000 * time.time()):012x}{secrets.token_hex(16)}"


def creation_time(name: str) -> float | None:
    """Return when an adapted policy was named, in seconds of Unix time; None for other names."""
    match = _ADAPTED.fullmatch(name)
    return int(match[1], 16) / 1000 if match else None


def without_secret(text: str) -> str:
    """Return a text as a log may contain it: the names in it are not enough to use a policy."""
    return _SECRET.sub("...", text)


def load_base_policy(run: str, checkpoint: str = "newest") -> ServedPolicy:
    """Load the policy of a run directory or URL, or one exported by ``maml-ray adapt``.

    Raises:
        UserError: ``run`` is none of these, or has no such checkpoint.
    """
    folder = parse_location(run, "run")
    if isinstance(folder, str):
        with tempfile.TemporaryDirectory() as directory:
            return _load_from_run(fetch_run(folder, Path(directory)).path, checkpoint)
    if is_policy_folder(folder):
        agent = load(folder)
        digest = hashlib.sha256(serialize_policy(agent)[PARAMETERS]).hexdigest()
        return ServedPolicy(f"policy-{digest[:16]}", agent)
    return _load_from_run(folder, checkpoint)


def _load_from_run(run_dir: Path, checkpoint: str) -> ServedPolicy:
    loaded = load_run(run_dir, checkpoint)
    name = f"checkpoint-{loaded.iteration}"
    return ServedPolicy(name, loaded.agent, num_passed_over=len(loaded.warnings))
