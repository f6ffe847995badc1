"""Whether a policy that was read fits the settings that lie beside it: files get mixed up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maml_ray.common.errors import RunDirError
from maml_ray.config.settings import PolicySettings
from maml_ray.evaluation.agent import Agent
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.maml.meta_parameters import meta_parameter_shapes
from maml_ray.policies.spec import PolicySpec

_SHARED = ("hidden_sizes", "activation", "initial_log_std", "min_log_std", "action_scale")


def check_matches_settings(agent: Agent, place: Path) -> None:
    """The sizes are those of the settings, the parameters of these sizes, and all are numbers.

    Makes no environment: a policy can be used where its task is not installed.

    Args:
        agent: as read from ``place``.
        place: for the sentence.

    Raises:
        RunDirError: they do not fit; the sentence says what.
    """
    problem = _sizes(agent.spec, agent.settings.policy)
    if problem is None:
        expected: dict[str, tuple[int, ...]] = meta_parameter_shapes(
            agent.spec, agent.settings.inner
        )
        problem = _arrays(agent.parameters, expected)
    if problem is None and agent.normalizer is not None:
        constants = {"mean": agent.normalizer.mean, "scale": agent.normalizer.scale}
        problem = _arrays(constants, dict.fromkeys(constants, (agent.spec.observation_size,)))
    if problem:
        raise RunDirError(f"the policy in {place} does not fit its settings: {problem}")


def check_matches_task(agent: Agent, place: Path | str) -> None:
    """The policy sees and does what the task of its settings shows and takes.

    Raises:
        SettingsError: the task cannot be made.
        RunDirError: it is another task's policy.
    """
    spec = policy_spec(agent.settings)
    if spec != agent.spec:
        raise RunDirError(
            f"the policy in {place} does not fit its settings: it has "
            f"{agent.spec.observation_size} observations and {agent.spec.action_size} actions, "
            f"{agent.settings.task.name} has {spec.observation_size} and {spec.action_size}"
        )


def _sizes(spec: PolicySpec, settings: PolicySettings) -> str | None:
    for key in ("observation_size", "action_size"):
        size = getattr(spec, key)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            return f"{key} = {size!r:.60}"
    for key in _SHARED:
        found, expected = getattr(spec, key), getattr(settings, key)
        if found != expected:
            return f"policy.{key} = {expected!r:.60}, and {found!r:.60} was trained"
    return None


def _arrays(found: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    if set(found) != set(expected):
        other = sorted(set(found) ^ set(expected))[0]
        return f"{other!r:.60} is {'missing' if other in expected else 'not of such a policy'}"
    for name, shape in expected.items():
        array = found[name]
        if array.shape != shape or array.dtype != np.float32:
            return f"{name} is {array.dtype} of shape {array.shape}, not float32 of {shape}"
        if not np.isfinite(array).all():
            return f"{name} holds what is not a number"
    return None
