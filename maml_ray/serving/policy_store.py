"""Where adapted policies are kept: so many at most, and so long at most."""

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
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.loading import load, load_with_iteration
from maml_ray.evaluation.policy_export import DESCRIPTION, PARAMETERS, serialize_policy
from maml_ray.persistence.run_storage import fetch_run
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.serving.requests import BASE_POLICY, ApiError
from maml_ray.tasks.task import Task


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
        return serialize_policy(self.agent, self.task)[PARAMETERS]

    @property
    def description(self) -> bytes:
        """``policy.json`` of a policy's folder."""
        return serialize_policy(self.agent, self.task)[DESCRIPTION]


def new_policy_name() -> str:
    """A name for an adapted policy, which nobody guesses."""
    return f"adapted-{secrets.token_hex(8)}"


def load_base_policy(run: str, checkpoint: str = "newest") -> ServedPolicy:
    """The policy of a run folder, of a run's URL in storage, or of a folder of ``maml-ray adapt``.

    Raises:
        UserError: it is none of these, or has no such checkpoint.
    """
    if "://" in run:
        with tempfile.TemporaryDirectory() as aside:
            return _of_run(fetch_run(run, Path(aside)).path, checkpoint)
    if (Path(run) / DESCRIPTION).exists():
        agent = load(run)
        digest = hashlib.sha256(serialize_policy(agent)[PARAMETERS]).hexdigest()
        return ServedPolicy(f"policy-{digest[:16]}", agent)
    return _of_run(Path(run), checkpoint)


def _of_run(folder: Path, checkpoint: str) -> ServedPolicy:
    agent, iteration = load_with_iteration(folder, checkpoint)
    return ServedPolicy(f"checkpoint-{iteration}", agent)


@dataclass(frozen=True, eq=False)
class LookupResult:
    """A policy that is there.

    Attributes:
        name: its own; that of a checkpoint where the base was asked for.
        expires_in_s: seconds until it is removed; None of the base.
        policy: itself; None where the asker has it already.
    """

    name: str
    expires_in_s: float | None
    policy: ServedPolicy | None


class PolicyStore:
    """The base policy, and the adapted ones: past the number, the least recently used one goes.

    Args:
        base: what adaptations begin from.
        most: how many adapted policies are kept.
        max_age_s: seconds from when a policy was made to when it is removed.
        clock: tells seconds.
    """

    def __init__(
        self,
        base: ServedPolicy,
        *,
        most: int,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base = base
        self._most, self._max_age_s, self._clock = most, max_age_s, clock
        self._kept: OrderedDict[str, tuple[ServedPolicy, float]] = OrderedDict()

    def __len__(self) -> int:
        self._forget_old()
        return len(self._kept)

    def replace_base(self, base: ServedPolicy) -> None:
        """Put another checkpoint live; the one before can be asked for by its name for a while."""
        before, self._base = self._base, base
        self._kept.pop(base.name, None)
        if before.name != base.name:
            self.keep(before)

    def keep(self, policy: ServedPolicy) -> float:
        """Keep a policy; seconds that it is kept for at most."""
        self._kept[policy.name] = (policy, self._clock())
        self._kept.move_to_end(policy.name)
        self._forget_old()
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return self._max_age_s

    def find(self, name: str, have: str | None = None) -> LookupResult:
        """A policy by its name; ``base`` is whichever checkpoint is live.

        Args:
            name: of the policy.
            have: the name of a policy that the asker has, which need not be sent again.

        Raises:
            ApiError: there is none, or there no longer is.
        """
        if name in (BASE_POLICY, self._base.name):
            policy, left = self._base, None
        else:
            self._forget_old()
            if name not in self._kept:
                raise ApiError(
                    404,
                    f"policy: there is no {name!r:.80}: it was never here, or is gone (the "
                    f"{self._most:,} most recently used are kept, for {self._max_age_s:,.0f} s): "
                    "POST /adapt gives a new one",
                )
            policy, made = self._kept[name]
            self._kept.move_to_end(name)
            left = self._max_age_s - (self._clock() - made)
        return LookupResult(policy.name, left, None if policy.name == have else policy)

    def _forget_old(self) -> None:
        oldest = self._clock() - self._max_age_s
        for name in [name for name, (_, made) in self._kept.items() if made <= oldest]:
            del self._kept[name]
