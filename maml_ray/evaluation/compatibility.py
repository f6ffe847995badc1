"""Check that a loaded policy matches its settings and its task, in case files got mixed up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from maml_ray.common.errors import RunDirError
from maml_ray.config.sections import PolicySettings
from maml_ray.evaluation.agent import Agent
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.maml.meta_parameters import adapted_shapes, meta_parameter_shapes
from maml_ray.policies.context import CONTEXT
from maml_ray.policies.spec import PolicySpec

_KEYS = ("hidden_sizes", "activation", "initial_log_std", "min_log_std", "action_scale")
"""Fields of PolicySpec that equal those of PolicySettings."""


def check_matches_settings(agent: Agent, source: Path) -> None:
    """Check that architecture, array shapes and dtypes match the settings and values are finite.

    Creates no environment, so a policy can be used where its task is not installed.

    Args:
        agent: policy and settings as loaded.
        source: path they were loaded from, for the error message.

    Raises:
        RunDirError: the policy does not match.
    """
    problem = _spec_problem(agent.spec, agent.settings.policy)
    if problem is None:
        inner = agent.settings.inner
        shapes: dict[str, tuple[int, ...]] = meta_parameter_shapes(agent.spec, inner)
        # Agent.support_agents() have a context before any step.
        has_context = agent.adaptation_steps > 0 or CONTEXT in agent.parameters
        if inner.parameters == "context" and has_context:
            shapes |= adapted_shapes(inner, agent.spec)
        problem = _array_problem(agent.parameters, shapes)
    if problem is None and agent.normalizer is not None:
        mean = agent.normalizer.mean
        # Its type says how observations are centered; its values are checked as those of float32.
        mean = mean.astype(np.float32) if mean.dtype == np.float64 else mean
        constants = {"mean": mean, "scale": agent.normalizer.scale}
        shapes = dict.fromkeys(constants, (agent.spec.observation_size,))
        problem = _array_problem(constants, shapes)
    if problem:
        raise RunDirError(f"the policy in {source} does not fit its settings: {problem}")


def check_matches_task(agent: Agent, source: str | PathLike[str]) -> None:
    """Check that the policy's observations and actions are those of its task.

    Args:
        agent: policy and settings as loaded.
        source: where they were loaded from, for the error message.

    Raises:
        SettingsError: the task cannot be created.
        RunDirError: they differ.
    """
    spec = policy_spec(agent.settings, agent.tasks)
    if agent.spec.action_bounds is None:  # saved when there were none
        spec = replace(spec, action_bounds=None)
    elif spec == replace(agent.spec, action_bounds=spec.action_bounds) != agent.spec:
        raise RunDirError(
            f"the policy in {source} does not fit its task: it was trained with the actions "
            f"{agent.spec.action_bounds}, {agent.settings.task.name} has {spec.action_bounds}"
        )
    if spec != agent.spec:
        raise RunDirError(
            f"the policy in {source} does not fit its settings: it has "
            f"{agent.spec.observation_size} observations and {agent.spec.action_size} actions, "
            f"{agent.settings.task.name} has {spec.observation_size} and {spec.action_size}"
        )


def _spec_problem(spec: PolicySpec, settings: PolicySettings) -> str | None:
    for key in ("observation_size", "action_size"):
        size = getattr(spec, key)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            return f"{key} is {size!r:.60}, not a positive integer"
    for key in _KEYS:
        actual, expected = getattr(spec, key), getattr(settings, key)
        if actual != expected:
            return (
                f"policy.{key} is {expected!r:.60}, but the policy was trained with {actual!r:.60}"
            )
    bounds, wanted = spec.action_bounds, settings.action_bounds
    if wanted is not None and not spec.discrete and wanted != (bounds.mode if bounds else "none"):
        return f"policy.action_bounds is {wanted}, but the policy was trained with other ones"
    return None


def _array_problem(arrays: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    if set(arrays) != set(shapes):
        name = sorted(set(arrays) ^ set(shapes))[0]
        return f"parameter {name!r:.60} is {'missing' if name in shapes else 'unexpected'}"
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.float32:
            return f"{name} is {array.dtype} of shape {array.shape}, not float32 of {shape}"
        if not np.isfinite(array).all():
            return f"{name} holds values that are not finite"
    return None
