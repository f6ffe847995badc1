"""Load the served policy of a run, and keep the policies adapted from it."""

from __future__ import annotations

import hashlib
import secrets
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
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
from maml_ray.serving.requests import BASE_POLICY, ApiError
from maml_ray.tasks.task import Task


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
    """Return a random name for an adapted policy, which other callers cannot guess."""
    return f"adapted-{secrets.token_hex(8)}"


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


@dataclass(frozen=True, eq=False)
class LookupResult:
    """A policy found in the store.

    Attributes:
        name: its own name; that of a checkpoint if the base policy was requested.
        expires_in_s: seconds until it is removed; None for the base policy.
        policy: the policy; None if the requester has it already.
    """

    name: str
    expires_in_s: float | None
    policy: ServedPolicy | None


class PolicyStore:
    """The base policy and a bounded number of adapted ones, least recently used removed first.

    Args:
        base: the policy that adaptations start from by default.
        max_policies: maximum number of adapted policies.
        max_age_s: seconds from a policy's creation to its removal.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        base: ServedPolicy,
        *,
        max_policies: int,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base = base
        self._max_policies, self._max_age_s, self._clock = max_policies, max_age_s, clock
        self._adapted: OrderedDict[str, tuple[ServedPolicy, float]] = OrderedDict()

    def __len__(self) -> int:
        self._remove_expired()
        return len(self._adapted)

    def replace_base(self, base: ServedPolicy) -> None:
        """Replace the base policy; the old one stays available by name until it expires."""
        previous, self._base = self._base, base
        self._adapted.pop(base.name, None)
        if previous.name != base.name:
            self.add(previous)

    def add(self, policy: ServedPolicy) -> float:
        """Add a policy and return its maximum lifetime in seconds."""
        self._adapted[policy.name] = (policy, self._clock())
        self._adapted.move_to_end(policy.name)
        self._remove_expired()
        while len(self._adapted) > self._max_policies:
            self._adapted.popitem(last=False)
        return self._max_age_s

    def get(self, name: str, cached_name: str | None = None) -> LookupResult:
        """Return a policy by name; ``base`` is the live checkpoint.

        Args:
            name: name of the policy.
            cached_name: name of the policy that the requester has and need not be sent again.

        Raises:
            ApiError: there is no such policy, or it has expired.
        """
        if name in (BASE_POLICY, self._base.name):
            policy, expires_in_s = self._base, None
        else:
            self._remove_expired()
            if name not in self._adapted:
                raise ApiError(
                    404,
                    f"policy: {name!r:.80} is unknown or has expired (the service keeps the "
                    f"{self._max_policies:,} most recently used, for {self._max_age_s:,.0f} s): "
                    "create one with POST /adapt",
                )
            policy, created_at = self._adapted[name]
            self._adapted.move_to_end(name)
            expires_in_s = self._max_age_s - (self._clock() - created_at)
        return LookupResult(
            policy.name, expires_in_s, None if policy.name == cached_name else policy
        )

    def _remove_expired(self) -> None:
        oldest = self._clock() - self._max_age_s
        for name in [name for name, (_, created) in self._adapted.items() if created <= oldest]:
            del self._adapted[name]
